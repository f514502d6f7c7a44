"""Startup cost: imports in fresh interpreters, and modules that a first call still imports."""

import json
import subprocess
import sys
from typing import Final

from .clients import FLOOR, OURS
from .plan import Plan
from .processes import ENVIRONMENT
from .table import Results, Row, at_most, cells, log, paired

_SECONDS: Final = 60

_READY: Final = {
    "floor": "import aiohttp, msgspec",
    "friendli_async": "import friendli_async; friendli_async.AsyncFriendli('token')",
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


def measure(plan: Plan) -> list[Row]:
    """Measure the import of each library plus the construction of a client, and our import alone."""
    log("imports")
    ready: Results = {}
    bare: Results = {}
    for repeat in range(-1, plan.repeats + 2):  # the first round only fills the bytecode caches
        for name in plan.clients():
            if repeat < plan.peer_repeats or name in (FLOOR, OURS):
                result = _timed(_READY[name])
                if repeat >= 0:
                    ready.setdefault(name, []).append(result)
        if repeat >= 0:
            bare.setdefault(FLOOR, []).append(ready[FLOOR][-1])
            bare.setdefault(OURS, []).append(_timed(_BARE))
    figures = [cells(results, "cpu", 1e3, "{:.0f}") for results in (ready, bare)]
    late = _late_imports(plan.origin)
    return [
        at_most(
            "import and first client (floor: aiohttp, msgspec): CPU ms", paired(ready, OURS), 1.2, cells=figures[0]
        ),
        at_most("  bare import", paired(bare, OURS), 0.35, cells=figures[1]),
        at_most("  modules imported on the request path", late, 0, "{:.0f}"),
    ]


def _late_imports(origin: str) -> int | None:
    """Log and count the modules that a first call imports."""
    output = _fresh(_FIRST_CALL, f"{origin}/bulk-10")
    names: list[str] | None = json.loads(output) if output else None
    if names:
        log(f"  imported by the first call: {', '.join(names)}")
    return None if names is None else len(names)
