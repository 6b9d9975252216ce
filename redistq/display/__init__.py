"""Text, colours and HTML for notebooks, pages and terminals. Knows no queue."""
