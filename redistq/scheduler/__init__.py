"""Moving tasks from the delayed set to the stream when they are due."""

from .scheduler import TaskScheduler as TaskScheduler
