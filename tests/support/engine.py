"""The real engine with a tiny random model, and how to see and to steer it from a test."""

import importlib.util
import json
import platform
import sys
import time
import urllib.request
from dataclasses import dataclass
from typing import Any, Final

import pytest

MODEL: Final = "tiny-random"

LONG: Final = {"extra_body": {"ignore_eos": True}}
"""Options that make a reply run to `max_tokens`."""

CALLS_A_TOOL: Final = {"extra_body": {"logit_bias": [["<tool_call>", 12]]}}
"""Options that make random weights begin tool calls, which llama.cpp's grammar then completes."""

_HAS_WHEEL: Final = (sys.platform, platform.machine()) in {
    ("linux", "x86_64"),
    ("linux", "aarch64"),
    ("darwin", "arm64"),
    ("darwin", "x86_64"),
    ("win32", "AMD64"),
}


def require_engine() -> None:
    """Skip where llama.cpp's server has no wheel; where it has one, a missing engine is a failure."""
    if importlib.util.find_spec("xllamacpp") is None:
        if _HAS_WHEEL:
            pytest.fail("xllamacpp is not installed: pip install 'friendli_async[engine-server]'")
        pytest.skip("xllamacpp publishes no wheel for this platform")


@dataclass(frozen=True)
class Slot:
    """One of the server's places to generate in."""

    id: int
    task: int
    """Of its present or latest request: they are numbered in the order of their arrival."""
    busy: bool
    tokens: int
    """Of its present or latest request: the prompt's, and after the end also the generated ones."""


def slots(url: str) -> list[Slot]:
    """What the server's slots are doing at this moment, by their ids."""
    with urllib.request.urlopen(f"{url}/slots", timeout=30) as reply:
        rows: list[dict[str, Any]] = json.load(reply)
    return [
        Slot(row["id"], row.get("id_task", -1), row["is_processing"], row.get("n_prompt_tokens", 0)) for row in rows
    ]


def latest_slot(url: str) -> Slot:
    """The slot that took the latest request. An earlier one may still be busy with the end of its own."""
    return max(slots(url), key=lambda slot: slot.task)


def freed_slot(url: str, slot: Slot, *, within: float = 30.0) -> Slot:
    """Ask again and again until the slot is idle; fail when it stays busy for so many seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        now = slots(url)[slot.id]
        if not now.busy:
            return now
    pytest.fail(f"slot {slot.id} was still busy after {within} s")
