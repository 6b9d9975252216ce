"""Workers on other machines, started and watched from here: ``client.start_workers(4, on=...)``.

A place says how to start one program over there (``ssh host``, ``srun``, or a Job of Kubernetes);
what is said to that program, and what it answers, is the same for the first two.
"""

from .kubernetes import Kubernetes as Kubernetes
from .place import Place as Place
from .slurm import Slurm as Slurm
from .ssh import SSH as SSH
