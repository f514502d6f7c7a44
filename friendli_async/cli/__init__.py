"""The command line ``friendli-async``: one module per command, with ``add_arguments`` and ``run``."""
