"""What commands have in common: which deployment and model, and how a failure is told."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, get_args

from friendli_async.client import DeploymentName
from friendli_async.errors import APIStatusError, ConfigurationError, FriendliError

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "add_deployment", "add_model", "run"]

FAILED: Final = 1
BAD_INPUT: Final = 2
INTERRUPTED: Final = 130


def add_deployment(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of a deployment."""
    parser.add_argument("--deployment", choices=get_args(DeploymentName), default="serverless", help="(%(default)s)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of a model."""
    parser.add_argument(
        "-m", "--model", default=os.environ.get("FRIENDLI_MODEL"), help="model, or endpoint id; or FRIENDLI_MODEL"
    )


def run(command: str, work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Runs a command to its end.

    Args:
        command: Its name, for what is said.
        work: What it does; gives the exit status.

    Returns:
        The exit status: what ``work`` gave, 1 for a failed call, 2 for bad input, 130 for Ctrl-C.
    """
    import asyncio  # not for --help

    try:
        return asyncio.run(work())
    except KeyboardInterrupt:
        return INTERRUPTED
    except FriendliError as error:
        print(f"friendli-async {command}: {_words(error)}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ConfigurationError) else FAILED
    except BrokenPipeError:
        raise
    except (TypeError, ValueError, OSError) as error:  # checked before anything was sent
        print(f"friendli-async {command}: {error}", file=sys.stderr)
        return BAD_INPUT


def _words(error: FriendliError) -> str:
    if isinstance(error, APIStatusError) and error.status_code in {401, 403}:
        return f"{error} (is FRIENDLI_TOKEN right? `friendli-async doctor` tells)"
    return str(error)
