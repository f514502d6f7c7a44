"""Runs the embedded server: it speaks Friendli's protocol on a loopback port, for tests.

It answers every operation of the API as a model would, without one, and fails on demand. Each request is a line on
standard error.
"""

from __future__ import annotations

import argparse

from friendli_async.testing import __main__ as embedded

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    embedded.add_arguments(parser)
    parser.set_defaults(access_log=True)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; gives its exit status."""
    return embedded.run(arguments)
