"""What commands have in common: which deployment and model, and how a failure is told."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, Literal

from friendli_async.client import AsyncFriendli, Container, Dedicated, Serverless
from friendli_async.errors import APIStatusError, ConfigurationError, FriendliError

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "Deployment", "add_deployment", "add_model", "deployment_of", "run"]

Deployment = Literal["serverless", "dedicated", "container"]

FAILED: Final = 1
BAD_INPUT: Final = 2
INTERRUPTED: Final = 130


def add_deployment(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of a deployment."""
    parser.add_argument(
        "--deployment", choices=("serverless", "dedicated", "container"), default="serverless", help="(%(default)s)"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of a model."""
    parser.add_argument(
        "-m", "--model", default=os.environ.get("FRIENDLI_MODEL"), help="model, or endpoint id; or FRIENDLI_MODEL"
    )


def deployment_of(client: AsyncFriendli, name: Deployment) -> Serverless | Dedicated | Container:
    """The deployment of that name."""
    if name == "serverless":
        return client.serverless
    return client.dedicated if name == "dedicated" else client.container


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
