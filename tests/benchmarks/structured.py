"""Snapshots of a growing JSON answer: cost per chunk, against a parser that starts over each time."""

import json
import time
from importlib.util import find_spec
from typing import Final

from friendli_async.chat.incremental_json import JSONReader

from .plan import Plan
from .table import Row, at_most, log

_SIZES: Final = (2, 8, 32, 128)  # kB
_PIECE: Final = 4  # characters
_PROBES: Final = 60


def measure(plan: Plan) -> list[Row]:
    """Measure the CPU time per chunk, for several lengths of the whole answer."""
    log("structured")
    ours: dict[int, float] = {}
    peer: dict[int, float] = {}
    for _ in range(plan.repeats):
        for size in _SIZES:
            pieces = _pieces(size * 1000)
            ours[size] = min(ours.get(size, 1.0), _ours(pieces))
            if plan.peers and find_spec("jiter") is not None:
                peer[size] = min(peer.get(size, 1.0), _jiter(pieces))
    rows = [Row(_label(size, ours, peer), cells={"friendli_async": f"{ours[size] * 1e6:.2f}"}) for size in _SIZES]
    return [
        *rows,
        at_most("  2 kB, ours beside jiter's", ours[2] / peer[2] if peer else None, 1.0),
        at_most("  128 kB beside 2 kB", ours[128] / ours[2], 1.25),
    ]


def _label(size: int, ours: dict[int, float], peer: dict[int, float]) -> str:
    beside = f" (jiter {peer[size] * 1e6:.2f})" if peer else ""
    return f"a snapshot of {size} kB: CPU us a piece{beside}"


def _pieces(size: int) -> list[str]:
    line = {"sku": "A-17", "title": 'Chair, "oak"', "quantity": 3, "price": 12.5, "there": True}
    text = json.dumps({"number": "7", "lines": [line] * (size // len(json.dumps(line)) + 1)})[:size]
    return [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]


def _ours(pieces: list[str]) -> float:
    reader = JSONReader()
    began = time.process_time()
    for piece in pieces:
        reader.feed(piece)
        _ = reader.value
    return (time.process_time() - began) / len(pieces)


def _jiter(pieces: list[str]) -> float:
    """Return the mean over evenly spread prefixes, each parsed from the start."""
    from jiter import from_json

    data = "".join(pieces).encode()
    ends = [len(data) * number // _PROBES for number in range(1, _PROBES + 1)]
    began = time.process_time()
    for end in ends:
        from_json(data[:end], partial_mode="trailing-strings")
    return (time.process_time() - began) / _PROBES
