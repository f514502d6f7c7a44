"""Runs the embedded server alone: `python -m friendli_async.testing --help`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Sequence

from friendli_async.testing.server import FriendliServer


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted.

    Args:
        arguments: The command line without the program's name; by default the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m friendli_async.testing", description="A server that speaks Friendli's protocol, for tests."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=0, type=int, help="port to listen on (default: a free one)")
    parser.add_argument("--token", default="test-token", help="token that requests must carry (default: %(default)s)")
    parser.add_argument("--pace", default=0.0, type=float, help="pause before each streamed event, in seconds")
    options = parser.parse_args(arguments)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(FriendliServer(options.token, host=options.host, port=options.port, pace=options.pace)))


async def _serve(server: FriendliServer) -> None:
    stopped = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows: there, KeyboardInterrupt ends it
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
    async with server:
        print(f"Listening on {server.url}. To point the client at it:")
        print(f"  export FRIENDLI_SERVER_URL={server.url}")
        print(f"  export FRIENDLI_CONTAINER_URL={server.url}")
        print(f"  export FRIENDLI_TOKEN={server.token}", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    main()
