"""Where Celery's ``utils.log`` stands."""
