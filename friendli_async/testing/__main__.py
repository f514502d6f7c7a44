"""Runs the embedded server standalone: `python -m friendli_async.testing --help`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from friendli_async.testing.faults import HELP, integer, parse, parse_pace
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.server import FriendliServer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command-line options."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=0, type=integer(0, 65535), help="port to listen on (default: a free one)")
    parser.add_argument("--token", default="test-token", help="token that requests must carry (default: %(default)s)")
    parser.add_argument(
        "--pace",
        default=0.0,
        type=parse_pace,
        help="pause before each streamed event: 0.02 (seconds), 20ms, or 50/s (events a second)",
    )
    parser.add_argument("--fault", type=parse, metavar="FAULTS", help="faults to inject; see below")
    parser.add_argument("--rate-limit", type=integer(1, 999_999_999), metavar="N", help="requests answered per minute")
    parser.add_argument(
        "--access-log",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="print a line for each request to stderr",
    )
    parser.epilog = HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def access_line(request: ReceivedRequest, seconds: float) -> str:
    """Returns the access log line of a request: without its headers, query and body."""
    return f"{request.method} {request.raw_path} {request.status} {request.outcome} {seconds:.3f} s"


def _log(request: ReceivedRequest, seconds: float) -> None:
    print(access_line(request, seconds), file=sys.stderr, flush=True)


def run(options: argparse.Namespace, program: str = "python -m friendli_async.testing") -> int:
    """Serves until interrupted.

    Args:
        options: The parsed command line.
        program: The name of the command, for error messages.

    Returns:
        The exit status: 2 if it cannot listen on the address.
    """
    server = FriendliServer(
        options.token,
        host=options.host,
        port=options.port,
        pace=options.pace,
        faults=options.fault,
        rate_limit=options.rate_limit,
        access_log=_log if options.access_log else None,
    )
    try:
        return asyncio.run(_serve(server, options, program))
    except KeyboardInterrupt:
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until interrupted.

    Args:
        arguments: The command line without the program name; by default that of the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m friendli_async.testing", description="A server that speaks Friendli's protocol, for tests."
    )
    add_arguments(parser)
    return run(parser.parse_args(arguments))


async def _serve(server: FriendliServer, options: argparse.Namespace, program: str) -> int:
    stopped = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # on Windows, KeyboardInterrupt ends it
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(server)
        except OSError as error:
            # The code of a failed name lookup is negative; asyncio adds the address to the text of a failed bind.
            reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
            print(f"{program}: cannot listen on {options.host}:{options.port}: {reason}", file=sys.stderr)
            return 2
        print(f"Listening on {server.url}")  # without a full stop, which would be copied with it
        print("To point the client at it:")
        print(f"  export FRIENDLI_SERVER_URL={server.url}")
        print(f"  export FRIENDLI_CONTAINER_URL={server.url}")
        print(f"  export FRIENDLI_TOKEN={server.token}", flush=True)
        await stopped.wait()
        return 0


if __name__ == "__main__":
    sys.exit(main())
