"""``python -m redistq.cli_monitor``: the name of the monitor's command."""

import sys

from .cli.monitor import main as main

if __name__ == "__main__":
    sys.exit(main())
