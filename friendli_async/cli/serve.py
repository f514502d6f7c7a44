"""Runs the embedded server for tests: Friendli's API on a loopback port.

It answers every operation of the API without a model, and fails on demand. Each request is logged to standard error.
"""

from __future__ import annotations

import argparse

from friendli_async.testing.__main__ import add_arguments as add_server_arguments
from friendli_async.testing.__main__ import run as run_server

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_server_arguments(parser)
    parser.set_defaults(access_log=True)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    return run_server(arguments, "friendli-async serve")
