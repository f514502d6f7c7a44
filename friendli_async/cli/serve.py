"""Runs the embedded server for tests: Friendli's API on a loopback port.

It answers every operation of the API without a model, and fails on demand. Each request is logged to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys

from friendli_async.cli import BAD_INPUT
from friendli_async.testing.faults import HELP, integer, parse, parse_pace
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.server import FriendliServer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=0, type=integer(0, 65535), help="port to listen on (default: a free one)")
    parser.add_argument("--token", default="test-token", help="token that requests must carry (default: %(default)s)")
    parser.add_argument(
        "--pace",
        default=0.0,
        type=parse_pace,
        help="pause before each streamed event: 0.02 (seconds), 20ms, or 50/s (events a second)",
    )
    parser.add_argument("--fault", type=_checked_faults, metavar="FAULTS", help="faults to inject; see below")
    parser.epilog = HELP


def run(arguments: argparse.Namespace) -> int:
    """Serves until interrupted, and returns the exit status: 2 if it cannot listen on the address."""
    server = FriendliServer(
        arguments.token,
        host=arguments.host,
        port=arguments.port,
        pace=arguments.pace,
        faults=arguments.fault,
        access_log=_log,
    )
    try:
        return asyncio.run(_serve(server, arguments))
    except KeyboardInterrupt:
        return 0


def _log(request: ReceivedRequest, seconds: float) -> None:
    """Logs a request without its headers, query and body."""
    line = f"{request.method} {request.raw_path} {request.status} {request.outcome} {seconds:.3f} s"
    print(line, file=sys.stderr, flush=True)


def _checked_faults(text: str) -> str:
    """Checks the faults while the arguments are parsed, so that the error names the option."""
    parse(text)
    return text


async def _serve(server: FriendliServer, arguments: argparse.Namespace) -> int:
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
            address = f"{arguments.host}:{arguments.port}"
            print(f"friendli-async serve: cannot listen on {address}: {reason}", file=sys.stderr)
            return BAD_INPUT
        print(f"Listening on {server.url}")  # without a full stop, which would be copied with it
        print("To point the client at it:")
        print(f"  export FRIENDLI_SERVER_URL={server.url}")
        print(f"  export FRIENDLI_CONTAINER_URL={server.url}")
        print(f"  export FRIENDLI_TOKEN={server.token}", flush=True)
        await stopped.wait()
        return 0
