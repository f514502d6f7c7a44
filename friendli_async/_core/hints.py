"""What is said of a name that a method or the client does not have: what it is called here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

__all__ = ["parameter_hint", "setting_hint"]

# Settings by the names of ours, of openai and of Friendli's SDK: how each is written here.
_SETTINGS: Final = {
    **{name: f"{name}=..." for name in ("token", "team", "server_url", "container_url", "timeout", "retry", "limits")},
    **dict.fromkeys(("headers", "default_headers", "extra_headers", "http_headers"), "headers={...}"),
    **dict.fromkeys(("retries", "retry_config"), "retry=RetryPolicy(...)"),
    "api_key": "token=...",
    "base_url": "server_url=... or container_url=...",
    "max_retries": "retry=RetryPolicy(max_attempts=...)",
    "observers": "observers=[...]",
    "organization": "team=...",
    "http_client": "session=... (an aiohttp session)",
    "verify": "ssl=...",
    "wake": "client.with_options(wake=True)",
    "timeout_ms": "timeout=seconds",
    "x_friendli_team": "team=...",
}
# Parameters of theirs, and of our own other APIs: what may stand for each. The nearest name is often a wrong one.
_PARAMETERS: Final = {
    "default_query": ("extra_query",),
    "function_call": ("tool_choice",),
    "functions": ("tools",),
    "instructions": ("system",),
    "max_completion_tokens": ("max_tokens", "max_output_tokens"),
    "max_new_tokens": ("max_tokens", "max_output_tokens"),
    "max_output_tokens": ("max_tokens",),
    "max_tokens": ("max_output_tokens",),
    "reasoning": ("reasoning_effort", "thinking"),
    "reasoning_effort": ("reasoning", "thinking"),
    "response_format": ("text", "output_config"),
    "stop": ("stop_sequences",),
    "stop_sequences": ("stop",),
    "system": ("instructions",),
    "thinking": ("reasoning_budget", "reasoning"),
}


def setting_hint(name: str) -> str | None:
    """How a setting is written here, as ``token=...``; None for what is none anywhere."""
    return _SETTINGS.get(name)


def parameter_hint(name: str, known: Collection[str]) -> str:
    """What to use for a keyword that a method does not have, as the end of a sentence.

    Args:
        name: The keyword.
        known: Those that the method has.
    """
    from difflib import get_close_matches  # only on the way to an error

    here = [other for other in _PARAMETERS.get(name, ()) if other in known]
    if here:
        return f"; here it is {here[0]!r}"
    if near := get_close_matches(name, known, 1):
        return f"; did you mean {near[0]!r}?"
    extra = next((other for other in ("extra_body", "extra_query") if other in known), None)
    return f"; what is not listed goes into {extra}={{...}}" if extra is not None else ""
