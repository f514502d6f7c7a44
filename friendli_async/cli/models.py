"""Lists the available models: those of the catalogue or, with `--deployment dedicated`, your endpoints.

Exit status: 0 listed, 1 the call failed, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec

from friendli_async._json import encode_json
from friendli_async.cli import connection
from friendli_async.client import AsyncFriendli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("filter", nargs="?", default="", metavar="TEXT", help="list only models that contain this text")
    parser.add_argument("--deployment", choices=("serverless", "dedicated"), default="serverless", help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="all fields, one JSON object per line")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    return connection.run("models", lambda: _models(arguments))


async def _models(arguments: argparse.Namespace) -> int:
    connection.check_token(arguments.deployment)
    async with AsyncFriendli() as client:
        if arguments.deployment == "dedicated":
            found = [endpoint async for endpoint in client.dedicated.endpoint.list()]
            rows = [(item.id, str(item.status), "") for item in found]
            items: Sequence[msgspec.Struct] = found
        else:
            catalogue = (await client.serverless.model.list()).data
            rows = [(item.id, f"{item.context_length or '?'} tokens", item.mode or "") for item in catalogue]
            items = catalogue
    matches = [pair for pair in zip(rows, items, strict=True) if arguments.filter.lower() in " ".join(pair[0]).lower()]
    if arguments.json:
        for _, item in matches:
            print(connection.printable(encode_json(item).decode(), sys.stdout))
        return 0
    widths = [max((len(row[column]) for row, _ in matches), default=0) for column in range(3)]
    for row, _ in matches:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        print(connection.printable(line, sys.stdout))
    if not matches:
        print("friendli-async models: no matches", file=sys.stderr)
    return 0
