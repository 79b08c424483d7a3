"""``python -m mariner``."""

import sys

from mariner.cli import main

if __name__ == "__main__":
    sys.exit(main())
