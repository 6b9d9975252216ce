"""Adding tasks and asking for their results, with and without ``await``."""

from .producer import AsyncTaskProducer as AsyncTaskProducer
from .producer import TaskProducer as TaskProducer
