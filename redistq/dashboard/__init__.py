"""A live picture of one queue, in a notebook cell or as a web page."""

from .dashboard import Dashboard as Dashboard
