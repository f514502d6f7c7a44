"""What it takes to be ready: imports in fresh interpreters, and what a first call still imports."""

import json
import subprocess
import sys
from typing import Final

from .clients import CLIENTS, installed
from .processes import ENVIRONMENT
from .table import FLOOR, OURS, Results, Verdict, at_most, median, paired, show_clients

_REPEATS: Final = 9
_PEER_REPEATS: Final = 3
_SECONDS: Final = 60

_READY: Final = {
    "floor": "import aiohttp, msgspec",
    "friendli_async": "import friendli_async; friendli_async.AsyncFriendli('token')",
    "httpx-sse": "import httpx, httpx_sse; httpx.AsyncClient()",
    "openai": "import openai; openai.AsyncOpenAI(api_key='token')",
    "friendli": "import friendli; friendli.AsyncFriendli(token='token')",
}
_BARE: Final = "import friendli_async"

_TIMED: Final = """
import json, sys, time
cpu, wall = time.process_time(), time.perf_counter()
{statement}
print(json.dumps(dict(cpu=time.process_time() - cpu, wall=time.perf_counter() - wall, modules=len(sys.modules))))
"""
_FIRST_CALL: Final = """
import asyncio, json, sys
import friendli_async
client = friendli_async.AsyncFriendli('token', server_url=sys.argv[1])
before = set(sys.modules)
async def main():
    async with client:
        async for _ in client.serverless.chat.stream(model='m', messages=[{'role': 'user', 'content': 'Hi'}]):
            pass
asyncio.run(main())
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def _fresh(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=_SECONDS, check=False)
    return done.stdout if done.returncode == 0 else ""


def _timed(statement: str) -> dict[str, float]:
    output = _fresh(_TIMED.format(statement=statement))
    return json.loads(output) if output else {}


def measure(origin: str) -> list[Verdict]:
    """Measure the import of each client with the making of its first client, and our bare import."""
    ready: Results = {}
    bare: Results = {}
    for repeat in range(-1, _REPEATS):  # the first round only writes the bytecode caches
        for name, statement in _READY.items():
            if name in CLIENTS and installed(name) and (repeat < _PEER_REPEATS or name in (FLOOR, OURS)):
                result = _timed(statement)
                if repeat >= 0:
                    ready.setdefault(name, []).append(result)
        if repeat >= 0:
            bare.setdefault(FLOOR, []).append(ready[FLOOR][-1])
            bare.setdefault(OURS, []).append(_timed(_BARE))
    columns = {
        "CPU ms": ("cpu", 1e3, "{:.0f}"),
        "wall ms": ("wall", 1e3, "{:.0f}"),
        "modules": ("modules", 1, "{:.0f}"),
    }
    show_clients("Import and first client, fresh interpreter (floor: import aiohttp, msgspec)", ready, columns)
    cpu = median(bare, OURS, "cpu")
    if cpu is not None:
        print(f"  bare `{_BARE}`: {cpu * 1e3:.0f} ms of CPU")
    output = _fresh(_FIRST_CALL, f"{origin}/bulk-10")
    late = json.loads(output) if output else None
    if late:
        print(f"  imported by the first call: {', '.join(late)}")
    return [
        at_most("import and first client, beside import aiohttp, msgspec", paired(ready, OURS), 1.25),
        at_most("bare import, beside import aiohttp, msgspec", paired(bare, OURS), 0.4),
        at_most("modules imported on the request path", None if late is None else len(late), 0, "{:.0f}"),
    ]
