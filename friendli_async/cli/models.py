"""Lists the models that can be called: those of the catalogue, or, with `--deployment dedicated`, your endpoints.

Exit status: 0 listed, 1 the call failed, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec

from friendli_async.cli import connection
from friendli_async.client import AsyncFriendli

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("filter", nargs="?", default="", metavar="TEXT", help="list only what has this in its name")
    parser.add_argument("--deployment", choices=("serverless", "dedicated"), default="serverless", help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="all that is known of each, a JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; gives its exit status."""
    return connection.run("models", lambda: _models(arguments))


async def _models(arguments: argparse.Namespace) -> int:
    async with AsyncFriendli() as client:
        if arguments.deployment == "dedicated":
            found = [endpoint async for endpoint in client.dedicated.endpoint.list()]
            rows = [(item.id, str(item.status), "") for item in found]
            items: Sequence[msgspec.Struct] = found
        else:
            catalogue = (await client.serverless.model.list()).data
            rows = [(item.id, f"{item.context_length or '?'} tokens", item.mode or "") for item in catalogue]
            items = catalogue
    chosen = [place for place, row in enumerate(rows) if arguments.filter.lower() in " ".join(row).lower()]
    if arguments.json:
        for place in chosen:
            print(msgspec.json.encode(items[place]).decode())
        return 0
    widths = [max((len(rows[place][column]) for place in chosen), default=0) for column in range(3)]
    for place in chosen:
        print("  ".join(text.ljust(width) for text, width in zip(rows[place], widths, strict=True)).rstrip())
    if not chosen:
        print("friendli-async models: there is none", file=sys.stderr)
    return 0
