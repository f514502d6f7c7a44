"""Runs the command ``friendli-async`` where it is not on the PATH: ``python -m friendli_async``."""

import sys

from friendli_async.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
