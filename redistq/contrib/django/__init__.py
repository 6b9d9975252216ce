"""redistq in Django: tasks that are added on commit, a worker's command, a backend of django.tasks.

``INSTALLED_APPS = [..., "redistq.contrib.django"]``, ``REDISTQ = {"URL": "redis://..."}``, and
``python manage.py redistq_worker``. docs/django.md is the guide.
"""

from __future__ import annotations

from .tasks import task

__all__ = ["task"]
