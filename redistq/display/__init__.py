"""Text, colours and HTML for any surface: notebooks, pages and terminals. Knows no queue."""
