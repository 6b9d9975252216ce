"""redistq within web frameworks; each module imports its framework, and nothing else does."""
