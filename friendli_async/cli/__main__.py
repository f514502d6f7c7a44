"""``friendli-async``: the commands, and which one is meant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, TextIO

from friendli_async._version import __version__

COMMANDS: Final = {
    "chat": "talk to a model; the command where none is named",
    "batch": "send a file of requests, and go on where it ended",
    "models": "list the models of the catalogue, or your endpoints",
    "doctor": "find out what is wrong between here and the server",
    "serve": "run the embedded server, for tests",
}
"""What can be done. Each is a module of this package with ``add_arguments`` and ``run``, loaded when asked for."""

_FIRST: Final = frozenset({"-h", "--help", "--version"})
_LEFT: Final = 128 + 13
"""How a shell tells of SIGPIPE, a signal that Windows has not."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command line without the program's name; by default the process's own.

    Returns:
        The exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--version"]:
        print(f"friendli-async {__version__}")
        return 0
    if not given and sys.stdin.isatty():
        given = ["--help"]
    if given and given[0] in _FIRST:
        _overview().parse_args(given)
    name, rest = (given[0], given[1:]) if given and given[0] in COMMANDS else ("chat", given)
    module: Any = import_module(f"friendli_async.cli.{name}")
    parser = argparse.ArgumentParser(
        prog=f"friendli-async {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return _quietly(module, parser.parse_args(rest))


def _quietly(module: Any, options: argparse.Namespace) -> int:
    """Runs a command; who reads its output may leave (``| head -1``) without being told of it."""
    try:
        status: int = module.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        status = _LEFT
    errors: TextIO | None = sys.stderr
    if errors is not None:  # else it was closed by the shell
        try:
            errors.flush()
        except OSError:
            _discard(errors)
    return status


def _discard(stream: TextIO) -> None:
    """Writes what is left in a buffer to nowhere: Python would try once more at its end, and exit with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _overview() -> argparse.ArgumentParser:
    lines = [f"  {name:<8} {words}" for name, words in COMMANDS.items()]
    return argparse.ArgumentParser(
        prog="friendli-async",
        usage="friendli-async [COMMAND] [ARGUMENTS]",
        description="Friendli's inference API, from the shell.",
        epilog="\n".join(
            [
                "commands:",
                *lines,
                "",
                "examples:",
                "  friendli-async -m MODEL 'Why is the sky blue?'",
                "  git diff | friendli-async -m MODEL -s 'Write a commit message.'",
                "  friendli-async batch requests.jsonl -o answers.jsonl -m MODEL",
                "",
                "environment:",
                "  FRIENDLI_TOKEN, FRIENDLI_TEAM, FRIENDLI_SERVER_URL, FRIENDLI_CONTAINER_URL",
                "  FRIENDLI_MODEL: what -m is, where it is left out",
                "",
                "friendli-async COMMAND --help tells more.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    sys.exit(main())
