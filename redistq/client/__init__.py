"""Functions fanned out over workers: clients, futures and batches."""

from ..protocol.options import CallOptions as CallOptions
from .client import Client as Client
from .client import LocalWorkers as LocalWorkers
