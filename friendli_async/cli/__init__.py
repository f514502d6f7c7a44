"""The command line: ``friendli-async``. A module a command, each with ``add_arguments`` and ``run``."""
