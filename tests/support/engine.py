"""The real engine with a tiny random model, and how tests observe and control it."""

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

LONG: Final[dict[str, Any]] = {"extra_body": {"ignore_eos": True}}
"""Options for a reply of exactly `max_tokens`."""

CALLS_A_TOOL: Final[dict[str, Any]] = {"extra_body": {"logit_bias": [["<tool_call>", 12]]}}
"""Options that make the random model start tool calls, which llama.cpp's grammar then completes."""

_HAS_WHEEL: Final = (sys.platform, platform.machine()) in {
    ("linux", "x86_64"),
    ("linux", "aarch64"),
    ("darwin", "arm64"),
    ("darwin", "x86_64"),
    ("win32", "AMD64"),
}


def require_engine() -> None:
    """Skip on platforms without a wheel of llama.cpp's server; elsewhere, a missing engine is a failure."""
    if importlib.util.find_spec("xllamacpp") is None:
        if _HAS_WHEEL:
            pytest.fail("xllamacpp is not installed: pip install 'friendli_async[engine-server]'")
        pytest.skip("xllamacpp publishes no wheel for this platform")


@dataclass(frozen=True)
class Slot:
    """A generation slot of the server."""

    id: int
    task: int
    """Number of its current or latest request, in order of arrival."""
    busy: bool
    tokens: int
    """Tokens of its current or latest request: of the prompt and, once it has ended, the generated ones."""


def slots(url: str) -> list[Slot]:
    """Return the current state of the server's slots, ordered by id."""
    with urllib.request.urlopen(f"{url}/slots", timeout=30) as reply:
        rows: list[dict[str, Any]] = json.load(reply)
    return [
        Slot(row["id"], row.get("id_task", -1), row["is_processing"], row.get("n_prompt_tokens", 0)) for row in rows
    ]


def latest_slot(url: str) -> Slot:
    """Return the slot of the latest request. Another one may still be finishing an earlier request."""
    return max(slots(url), key=lambda slot: slot.task)


def freed_slot(url: str, slot: Slot) -> Slot:
    """Poll until the slot is idle; fail after 30 seconds."""
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        now = slots(url)[slot.id]
        if not now.busy:
            return now
    pytest.fail(f"slot {slot.id} was still busy after 30 s")
