"""Functions fanned out over workers: clients, futures and batches."""

from .client import CallOptions as CallOptions
from .client import Client as Client
from .client import LocalWorkers as LocalWorkers
