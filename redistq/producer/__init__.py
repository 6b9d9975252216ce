"""Adding tasks and asking for their results, with and without ``await``."""

from .async_producer import AsyncTaskProducer as AsyncTaskProducer
from .producer import TaskProducer as TaskProducer
