"""Shared by the commands: the deployment and model options, exit statuses, error reporting, signals, and terminals."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO, get_args

from friendli_async._core.settings import strip_quotes
from friendli_async.cli import BAD_INPUT, FAILED, INTERRUPTED
from friendli_async.client import DeploymentName
from friendli_async.errors import APIStatusError, ConfigurationError, FriendliError

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def add_deployment(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the deployment."""
    parser.add_argument("--deployment", choices=get_args(DeploymentName), default="serverless", help="(%(default)s)")


def add_model(parser: argparse.ArgumentParser, otherwise: str = "") -> None:
    """Adds the option for the model; ``otherwise`` says in the help what happens without one."""
    parser.add_argument(
        "-m",
        "--model",
        type=model_name,
        default=str.__str__(strip_quotes(os.environ.get("FRIENDLI_MODEL", ""))) or None,  # not masked: it is no secret
        help=f"model, or endpoint id (default: FRIENDLI_MODEL{otherwise})",
    )


def model_name(text: str) -> str | None:
    """Converts the argument of ``-m``: that of ``-m "$MODEL"`` is empty if the variable is not set."""
    return text or None


def check_token(deployment: str) -> None:
    """Checks that there is a token: the client's own error, at the first call, names a parameter of the library.

    Raises:
        ConfigurationError: The deployment requires one, and it is not set.
    """
    if deployment != "container" and not strip_quotes(os.environ.get("FRIENDLI_TOKEN", "")):
        raise ConfigurationError("no token: set FRIENDLI_TOKEN")


def run(command: str, work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Runs a command to completion, and reports its errors on stderr, with its name.

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


def utf8(text: str) -> str:
    """Returns an argument or input with the bytes that the locale could not decode (PEP 383) decoded as UTF-8.

    Raises:
        ConfigurationError: They are not UTF-8. A server would reject them, or the model get halves of characters.
    """
    try:
        return text.encode(errors="surrogateescape").decode()
    except UnicodeError as error:
        raise ConfigurationError(f"the text is not UTF-8: {error}") from None


def printable(text: str, stream: TextIO) -> str:
    """Returns what to print of a text from the server: a terminal would obey the control characters in it."""
    return _CONTROLS.sub("", text) if stream.isatty() else text


def is_ignored(number: int) -> bool:
    """Whether a signal is ignored, as in a background job of a shell: Ctrl-C is meant for the foreground job."""
    return signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def on_signals(handle: Callable[[int], None], *numbers: int) -> Generator[None]:
    """Calls a function with the number of each signal that is not ignored, instead of the signal's usual effect.

    It is called in the running event loop. On Windows a signal keeps its usual effect: Ctrl-C ends the program.
    """
    import asyncio  # deferred, as in `run`

    loop = asyncio.get_running_loop()
    handled: list[int] = []
    for number in numbers:
        if not is_ignored(number):
            with suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, handle, number)
                handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def _message(error: FriendliError) -> str:
    if isinstance(error, APIStatusError) and error.status_code in {401, 403}:
        return f"{error} (check FRIENDLI_TOKEN, or run `friendli-async doctor`)"
    return str(error)
