"""What is said of a name that a method, a value or the client does not have: what it is called here."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

__all__ = ["Hinted", "field_hint", "parameter_hint", "setting_hint"]

# Settings by the names of ours, of openai and of Friendli's SDK: how each is written here.
_SETTINGS: Final = {
    **{
        name: f"{name}=..."
        for name in ("token", "team", "server_url", "container_url", "timeout", "retry", "pacing", "limits")
    },
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
    **dict.fromkeys(
        (
            *("audio", "background", "include", "metadata", "modalities", "prediction", "previous_response_id"),
            *("prompt_cache_key", "safety_identifier", "service_tier", "store", "truncation", "user", "verbosity"),
            "web_search_options",
        ),
        (),  # there is none
    ),
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

# Fields of Timeouts, RetryPolicy and Limits by the names of theirs.
_FIELDS: Final = {
    **dict.fromkeys(("read", "sock_read", "read_timeout"), "idle=... and first_event=..."),
    **dict.fromkeys(("write", "timeout", "max_elapsed_time", "max_elapsed", "deadline"), "Timeouts(total=...)"),
    **dict.fromkeys(("sock_connect", "connect_timeout"), "connect=..."),
    **dict.fromkeys(("max_retries", "retries", "attempts", "total"), "max_attempts=..., the first one counted"),
    **dict.fromkeys(("backoff", "backoff_factor", "initial_interval", "initial_delay", "min_wait"), "initial=..."),
    **dict.fromkeys(("exponent", "exponential_base", "factor"), "multiplier=..."),
    **dict.fromkeys(("max_interval", "max_delay", "backoff_max"), "max_wait=..."),
    **dict.fromkeys(("status_codes", "status_forcelist", "retry_on"), "statuses={...}"),
    **dict.fromkeys(("max_event_size", "line"), "event=..."),
    **dict.fromkeys(("max_connections", "max_keepalive_connections"), "AsyncFriendli(max_connections=...)"),
}
# Attributes by the names of openai, and by the plurals that the official client does not have.
_ATTRIBUTES: Final = {
    "beta": ("chat",),
    "classify": ("text_classification",),
    "close": ("aclose",),
    "completions": ("complete", "stream"),
    "create": ("complete", "generate", "transcribe", "tokenize", "classify", "render", "stream"),
    "dataset": ("file",),
    "datasets": ("file",),
    "embedding": ("embeddings",),
    "endpoints": ("endpoint",),
    "files": ("file",),
    "generations": ("generate",),
    "images": ("image",),
    "models": ("model",),
    "parse": ("complete", "create"),
    "retrieve": ("get_spec", "get_info", "list"),
    "speech": ("audio",),
    "tokens": ("token",),
    "tool_assisted": ("tool_assisted_chat",),
    "transcriptions": ("transcribe", "stream"),
    "with_raw_response": ("with_options",),
}
_DEPLOYMENTS: Final = ("serverless", "dedicated", "container")


class Hinted:
    """Base of what names are looked up in: one that it does not have is told by what it is called here."""

    if not TYPE_CHECKING:  # to type checkers an unknown name is an error

        def __getattr__(self, name: str) -> Any:
            hint = "" if name.startswith("_") else _attribute_hint(self, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")


def _public(owner: object) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]


def _attribute_hint(owner: object, name: str) -> str:
    from difflib import get_close_matches  # only on the way to an error

    here = _public(owner)
    meant = (name, *_ATTRIBUTES.get(name, ()))
    there = {place: _public(getattr(owner, place)) for place in _DEPLOYMENTS if place in here}
    for group in meant:
        if places := [f"{place}.{group}" for place, names in there.items() if group in names]:
            return f"; here it is {' or '.join(places)}"
    if known := [other for other in meant if other in here]:
        return f"; here it is {' or '.join(known[:2])}"
    near = get_close_matches(name, here, 1, 0.7)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(here)}"


def field_hint(name: str, known: Collection[str]) -> str:
    """What to use for a field that a value does not have, as the end of a sentence."""
    from difflib import get_close_matches  # only on the way to an error

    if name in _FIELDS:
        return f"; here it is {_FIELDS[name]}"
    near = get_close_matches(name, known, 1, 0.7)
    return f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known)}"


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
    if name not in _PARAMETERS and (near := get_close_matches(name, known, 1, 0.7)):
        return f"; did you mean {near[0]!r}?"
    extra = next((other for other in ("extra_body", "extra_query") if other in known), None)
    return f"; what is not listed goes into {extra}={{...}}" if extra is not None else ""
