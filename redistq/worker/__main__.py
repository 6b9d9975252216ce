"""``python -m redistq.worker``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
