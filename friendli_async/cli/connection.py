"""Shared by the commands: the deployment and model options, exit statuses, and error reporting."""

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
    """Adds the option for the deployment."""
    parser.add_argument("--deployment", choices=get_args(DeploymentName), default="serverless", help="(%(default)s)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the model."""
    parser.add_argument(
        "-m",
        "--model",
        default=os.environ.get("FRIENDLI_MODEL"),
        help="model, or endpoint id (default: FRIENDLI_MODEL)",
    )


def run(command: str, work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Runs a command to completion, and reports its errors on stderr.

    Args:
        command: Name of the command, for error messages.
        work: Coroutine function that returns the exit status.

    Returns:
        The exit status: that of ``work``, 1 for a failed call, 2 for bad input, 130 for Ctrl-C.

    Raises:
        OSError: Standard output cannot be written.
    """
    import asyncio  # deferred: --help does not need it

    try:
        return asyncio.run(work())
    except KeyboardInterrupt:
        return INTERRUPTED
    except FriendliError as error:
        print(f"friendli-async {command}: {_message(error)}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ConfigurationError) else FAILED
    except (TypeError, ValueError, OSError) as error:  # raised before anything was sent
        if isinstance(error, OSError) and error.filename is None:
            raise  # not of a file that was read, but of the output
        print(f"friendli-async {command}: {error}", file=sys.stderr)
        return BAD_INPUT


def _message(error: FriendliError) -> str:
    if isinstance(error, APIStatusError) and error.status_code in {401, 403}:
        return f"{error} (check FRIENDLI_TOKEN, or run `friendli-async doctor`)"
    return str(error)
