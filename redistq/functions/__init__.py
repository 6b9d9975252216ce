"""A Python call as a task, both ends: written down by a client, made by a worker."""
