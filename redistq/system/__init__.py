"""This machine: its files, processes and addresses. Knows no queue and no server."""
