"""``python -m redistq.cli``: the command ``redistq``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
