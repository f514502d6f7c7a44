"""What is said of a name that a method, a value or the client does not have: what it is called here."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

__all__ = ["Hinted", "field_hint", "parameter_hint", "setting_hint"]

# Settings by the names of ours, of openai, anthropic, mistral, litellm and of Friendli's SDK: how each is written here.
_SETTINGS: Final = {
    **{
        name: f"{name}=..."
        for name in ("token", "team", "server_url", "container_url", "timeout", "retry", "pacing", "limits")
    },
    **dict.fromkeys(("headers", "default_headers", "extra_headers", "http_headers"), "headers={...}"),
    **dict.fromkeys(("retries", "retry_config"), "retry=RetryPolicy(...)"),
    **dict.fromkeys(("max_retries", "num_retries"), "retry=RetryPolicy(max_attempts=...)"),
    **dict.fromkeys(("api_key", "access_token", "auth_token", "bearer_auth"), "token=..."),
    **dict.fromkeys(("base_url", "api_base"), "server_url=... or container_url=..."),
    **dict.fromkeys(("organization", "x_friendli_team"), "team=..."),
    **dict.fromkeys(("request_timeout", "stream_timeout"), "timeout=..."),
    "connect_timeout": "timeout=Timeouts(connect=...)",
    "idempotency_key": 'headers={"Idempotency-Key": ...}',
    "observers": "observers=[...]",
    "read_timeout": "timeout=Timeouts(first_event=..., idle=...)",
    "timeout_ms": "timeout=seconds",
    "user_agent": 'headers={"User-Agent": ...}',
    "wake": "wake=True",
}
# Settings that belong to the pool, which a client shares with its copies.
_SETTINGS_OF_THE_POOL: Final = {
    **{name: f"{name}=..." for name in ("max_connections", "proxy", "ssl", "session")},
    **dict.fromkeys(("verify", "verify_ssl", "ssl_context", "cert", "ca_bundle"), "ssl=..."),
    **dict.fromkeys(("proxies", "trust_env"), "proxy=..."),
    **dict.fromkeys(
        ("http_client", "async_http_client", "async_client", "httpx_client", "client", "connector", "transport"),
        "session=... (an aiohttp session)",
    ),
    **dict.fromkeys(("pool_size", "max_keepalive_connections", "pool_limits"), "max_connections=..."),
}
# The same where only a client is meant: of a method they may be anything.
_SETTINGS_OF_A_CLIENT: Final = {
    **dict.fromkeys(("apikey", "auth", "credentials", "key", "personal_access_token", "security"), "token=..."),
    **dict.fromkeys(("azure_endpoint", "endpoint", "host", "server", "url"), "server_url=... or container_url=..."),
    **dict.fromkeys(("default_query", "params"), "extra_query={...} of a method"),
    **dict.fromkeys(("callbacks", "event_hooks"), "observers=[...]"),
    **dict.fromkeys(("debug", "debug_logger", "log_level", "logger"), 'logging.getLogger("friendli_async")'),
    "rate_limit": "pacing=Pacing(...)",
}
# Parameters of theirs, and of our own other APIs: what may stand for each. The nearest name is often a wrong one.
_PARAMETERS: Final = {
    **dict.fromkeys(
        (
            *("audio", "background", "betas", "cache", "caching", "echo", "fallbacks", "include", "mcp_servers"),
            *("metadata", "modalities", "prediction", "previous_response_id", "prompt_cache_key", "prompt_mode"),
            *("prompt_cache_retention", "safe_prompt", "safety_identifier", "service_tier", "store", "suffix", "tags"),
            *("truncation", "user", "user_id", "verbosity", "web_search_options"),
        ),
        (),  # there is none
    ),
    **dict.fromkeys(("adapter_route", "deployment_id", "endpoint_id", "engine", "model_id", "model_name"), ("model",)),
    **dict.fromkeys(("best_of", "candidate_count", "num_return_sequences"), ("n",)),
    **dict.fromkeys(("budget_tokens", "thinking_budget"), ("reasoning_budget", "thinking", "reasoning")),
    **dict.fromkeys(
        (
            *("grammar", "guided_json", "guided_regex", "json_mode", "json_schema", "output_format", "output_schema"),
            *("output_type", "response_format", "response_model", "response_schema", "schema", "text_format"),
        ),
        ("response_format", "text", "output_config"),
    ),
    **dict.fromkeys(
        (
            *("max_completion_tokens", "max_gen_len", "max_length", "max_new_tokens", "max_output_tokens"),
            *("max_tokens", "max_tokens_to_sample", "n_predict", "num_predict"),
        ),
        ("max_tokens", "max_output_tokens"),
    ),
    "default_query": ("extra_query",),
    "function_call": ("tool_choice",),
    "functions": ("tools",),
    "include_usage": ("stream_options",),
    "instructions": ("system",),
    "random_seed": ("seed",),
    "reasoning": ("reasoning_effort", "thinking"),
    "reasoning_effort": ("reasoning", "thinking"),
    "repeat_penalty": ("repetition_penalty",),
    "stop": ("stop_sequences",),
    "stop_sequences": ("stop",),
    "stop_token_ids": ("eos_token",),
    "system": ("instructions",),
    "system_prompt": ("system", "instructions"),
    "thinking": ("reasoning_budget", "reasoning"),
    "tool": ("tools",),
}
_SYSTEM: Final = frozenset({"system", "system_prompt", "instructions"})
"""Where none of these is a parameter, and there are messages, it is one of them."""

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
    **dict.fromkeys(("pause", "stop", "suspend"), ("sleep", "terminate")),
    **dict.fromkeys(("resume", "start"), ("wake",)),
    **dict.fromkeys(("billing", "costs"), ("cost", "usage")),
    **dict.fromkeys(("copy", "with_raw_response"), ("with_options",)),
    "astream": ("stream",),
    "beta": ("chat",),
    "classify": ("text_classification",),
    "close": ("aclose",),
    "completions": ("complete", "stream"),
    "content": ("download",),
    "create": ("complete", "generate", "transcribe", "tokenize", "classify", "render", "stream", "upload"),
    "describe": ("get_spec", "get_info", "get_status"),
    "embedding": ("embeddings",),
    "endpoints": ("endpoint",),
    "files": ("file",),
    "generate": ("complete",),
    "generations": ("generate",),
    "get": ("get_spec", "get_info", "list"),
    "images": ("image",),
    "list": ("get",),
    "models": ("model",),
    "parse": ("complete", "create"),
    "patch": ("update",),
    "remove": ("delete",),
    "retrieve": ("get_spec", "get_info", "list"),
    "status": ("get_status",),
    "tokenization": ("tokenize",),
    "tokens": ("token",),
    "tool_assisted": ("tool_assisted_chat",),
    "transcriptions": ("transcribe", "stream"),
    "with_streaming_response": ("stream", "with_options"),
}
# What a client is asked for in one breath elsewhere, and what it is asked for in vain.
_SAID: Final = {
    **dict.fromkeys(
        ("acompletion", "chat_completion", "chat_complete", "complete", "completion", "generate"),
        "here it is serverless.chat.complete, and so for dedicated and container",
    ),
    **dict.fromkeys(
        ("api_key", "base_url", "max_retries", "team", "timeout", "token", "default_headers", "server_url"),
        "settings cannot be asked for; with_options(...) gives a copy with others",
    ),
    **dict.fromkeys(
        ("batch", "batches"), "here it is friendli_async.bulk.run_all, or the command friendli-async batch"
    ),
    **dict.fromkeys(("count_tokens", "tokenizer"), "here it is serverless.token.tokenize"),
    **dict.fromkeys(("dataset", "datasets"), "there are no datasets here, as in Friendli's SDK since 0.15.0"),
}
_DEPLOYMENTS: Final = ("serverless", "dedicated", "container")
# Groups that one deployment has, and another has not.
_ELSEWHERE: Final = {
    "chat_render": "serverless.chat_render or dedicated.chat_render",
    "embeddings": "dedicated.embeddings",
    "endpoint": "dedicated.endpoint",
    "image": "dedicated.image or container.image",
    "model": "serverless.model",
    "text_classification": "dedicated.text_classification or container.text_classification",
    "tool_assisted_chat": "serverless.tool_assisted_chat",
    "tool_assisted_chat_completion": "serverless.tool_assisted_chat_completion",
}


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
    plain = name.lower().removesuffix("_async")
    meant = dict.fromkeys((plain, *_ATTRIBUTES.get(plain, ())))
    there = {place: _public(getattr(owner, place)) for place in _DEPLOYMENTS if place in here}
    for group in meant:
        if places := [f"{place}.{group}" for place, names in there.items() if group in names]:
            return f"; here it is {' or '.join(places)}"
    if known := [other for other in meant if other in here]:
        return f"; here it is {' or '.join(known[:2])}"
    if (there or plain in {"batches", "count_tokens", "dataset", "datasets"}) and plain in _SAID:
        return f"; {_SAID[plain]}"
    if type(owner).__name__.lower() in _DEPLOYMENTS and (groups := [group for group in meant if group in _ELSEWHERE]):
        return f"; here it is {_ELSEWHERE[groups[0]]}"
    near = get_close_matches(plain, here, 1, 0.7)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(here)}"


def field_hint(name: str, known: Collection[str]) -> str:
    """What to use for a field that a value does not have, as the end of a sentence."""
    from difflib import get_close_matches  # only on the way to an error

    if name in _FIELDS:
        return f"; here it is {_FIELDS[name]}"
    near = get_close_matches(name, known, 1, 0.7)
    return f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known)}"


def setting_hint(name: str, known: Collection[str] = ()) -> str | None:
    """How a setting is written here, and where; None for what is none anywhere.

    Args:
        name: What it was called.
        known: The settings that were to be had, of a client or its ``with_options``; none where a method was called.
    """
    if not known:
        if name in _SETTINGS:
            return f"it is a setting, use client.with_options({_SETTINGS[name]})"
        found = _SETTINGS_OF_THE_POOL.get(name)
        return f"it is a setting of the client: AsyncFriendli({found})" if found else None
    if (here := _SETTINGS.get(name) or _SETTINGS_OF_A_CLIENT.get(name)) is not None:
        return f"here it is {here}" if name != "wake" else "here it is client.with_options(wake=True)"
    if (here := _SETTINGS_OF_THE_POOL.get(name)) is not None:
        return f"here it is {here}" if "session" in known else f"it is a setting of the client: AsyncFriendli({here})"
    from difflib import get_close_matches  # only on the way to an error

    near = get_close_matches(name, known, 1, 0.7)
    return f"did you mean {near[0]!r}?" if near else None


def parameter_hint(name: str, known: Collection[str]) -> str:
    """What to use for a keyword that a method does not have, as the end of a sentence.

    Args:
        name: The keyword.
        known: Those that the method has.
    """
    from difflib import get_close_matches  # only on the way to an error

    plain = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).lower()  # maxTokens
    here = [other for other in (plain, *_PARAMETERS.get(plain, ())) if other in known]
    if here:
        return f"; here it is {here[0]!r}"
    if plain in _SYSTEM and "messages" in known:
        return "; here it is a message with the role 'system'"
    if plain not in _PARAMETERS and (near := get_close_matches(plain, known, 1, 0.7)):
        return f"; did you mean {near[0]!r}?"
    extra = next((other for other in ("extra_body", "extra_query") if other in known), None)
    return f"; what is not listed goes into {extra}={{...}}" if extra is not None else ""
