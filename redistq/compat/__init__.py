"""Other task queues' ways of writing, running on redistq: a project moves module by module.

``redistq.compat.celery`` and ``redistq.compat.rq`` have the names and the meanings of those
packages, neither of which is imported. What they cannot do raises ``NotSupported``, which names the
next step. docs/migrating.md has the tables.
"""
