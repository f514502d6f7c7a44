"""Entry point of ``friendli-async``: selects a command and runs it."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, TextIO

from friendli_async._version import __version__
from friendli_async.cli import FAILED, INTERRUPTED

COMMANDS: Final = {
    "chat": "talk to a model (the default command)",
    "batch": "send a file of requests; run it again to resume",
    "models": "list the models of the catalogue, or your endpoints",
    "doctor": "diagnose the connection to the server",
    "serve": "run the embedded server, for tests",
}
"""The commands and their help. Each is a module of this package, imported on demand."""

_SIGPIPE_STATUS: Final = 128 + 13
"""Exit status of a process killed by SIGPIPE, spelled out because Windows lacks the signal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; exits quietly on Ctrl-C, or if the reader of its output closes the pipe (``| head -1``).

    Args:
        arguments: The command line without the program name; by default ``sys.argv[1:]``.

    Returns:
        The exit status.
    """
    _prepare_streams()
    message = ""
    try:
        try:
            status = _run_command(list(sys.argv[1:] if arguments is None else arguments))
        finally:  # also if argparse exits, after --help
            sys.stdout.flush()
    except KeyboardInterrupt:  # while modules are imported, which takes longest; the commands handle it otherwise
        status = INTERRUPTED
    except BrokenPipeError:
        _discard(sys.stdout)
        status = _SIGPIPE_STATUS
    except OSError as error:
        _discard(sys.stdout)
        status, message = FAILED, f"friendli-async: the output cannot be written: {error.strerror or error}\n"
    try:
        sys.stderr.write(message)
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
    return status


def _run_command(given: list[str]) -> int:
    if not given and sys.stdin.isatty():
        given = ["--help"]
    if given and given[0] in {"-h", "--help", "--version"}:
        _overview().parse_args(given)
    name, rest = (given[0], given[1:]) if given and given[0] in COMMANDS else ("chat", given)
    module = _command(name)
    parser = argparse.ArgumentParser(
        prog=f"friendli-async {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    status: int = module.run(parser.parse_args(rest))
    return status


def _command(name: str) -> Any:
    """Imports a command, by a statement: what packs a program into one file does not find computed names."""
    match name:
        case "batch":
            from friendli_async.cli import batch

            return batch
        case "models":
            from friendli_async.cli import models

            return models
        case "doctor":
            from friendli_async.cli import doctor

            return doctor
        case "serve":
            from friendli_async.cli import serve

            return serve
        case _:
            from friendli_async.cli import chat

            return chat


def _prepare_streams() -> None:
    """Opens the null device for standard streams that the shell has closed; stdout replaces what it cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  # open until the exit
    stdout: Any = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="replace")


def _discard(stream: TextIO) -> None:
    """Redirects a stream to the null device: flushing its buffer would fail again at exit, with status 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _overview() -> argparse.ArgumentParser:
    lines = [f"  {name:<8} {summary}" for name, summary in COMMANDS.items()]
    parser = argparse.ArgumentParser(
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
                "  FRIENDLI_MODEL: default of -m",
                "",
                "Run friendli-async COMMAND --help for details.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"friendli-async {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
