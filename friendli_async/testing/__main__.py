"""Runs the embedded server: ``python -m friendli_async.testing`` is ``friendli-async serve``."""

from __future__ import annotations

import sys

from friendli_async.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
