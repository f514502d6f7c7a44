"""The real engine with a tiny random model, and how to see and to steer it from a test."""

import importlib.util
import json
import platform
import sys
import urllib.request
from typing import Any, Final

import pytest

MODEL: Final = "tiny-random"

LONG: Final = {"extra_body": {"logit_bias": [["<|im_end|>", -100]]}}
"""Options that make a reply run to `max_tokens`: the end token never wins."""

CALLS_A_TOOL: Final = {"extra_body": {"logit_bias": [["<tool_call>", 12]]}}
"""Options that make random weights begin a tool call, which llama.cpp's grammar then completes."""

_HAS_WHEEL: Final = (sys.platform, platform.machine()) in {
    ("linux", "x86_64"),
    ("linux", "aarch64"),
    ("darwin", "arm64"),
    ("win32", "AMD64"),
}


def require_engine() -> None:
    """Skip where llama.cpp's server has no wheel; where it has one, a missing engine is a failure."""
    if importlib.util.find_spec("xllamacpp") is None:
        if _HAS_WHEEL:
            pytest.fail("xllamacpp is not installed: pip install 'friendli_async[engine-server]'")
        pytest.skip("xllamacpp publishes no wheel for this platform")


def busy_slots(url: str) -> int:
    """How many requests the server is generating for at this moment."""
    with urllib.request.urlopen(f"{url}/slots", timeout=10) as reply:
        slots: list[dict[str, Any]] = json.load(reply)
    return sum(slot["is_processing"] for slot in slots)
