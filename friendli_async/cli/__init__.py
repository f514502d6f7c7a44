"""The command line ``friendli-async``: one module per command, with ``add_arguments`` and ``run``."""

from typing import Final

FAILED: Final = 1
BAD_INPUT: Final = 2
INTERRUPTED: Final = 130
"""Exit statuses."""
