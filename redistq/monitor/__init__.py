"""One queue seen from outside: figures, records, DataFrames and plots."""

from .monitor import TaskMonitor as TaskMonitor
