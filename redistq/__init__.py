"""redistq: a distributed task queue on Redis Streams."""

__version__ = "0.1.0"
