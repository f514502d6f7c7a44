"""Hints in errors for unknown names: the matching name in this library. Also how errors show a value."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

_MAX_SHOWN: Final = 100

# These tables map our name, or a hint, to the names that openai, anthropic, mistral, litellm and Friendli's SDK have
# for the same. They are searched only to raise an error.

_SETTINGS: Final = {
    "token=...": "token api_key access_token auth_token bearer_auth",
    "team=...": "team organization x_friendli_team",
    "server_url=...": "server_url",
    "container_url=...": "container_url",
    "server_url=... or container_url=...": "base_url api_base",
    "timeout=...": "timeout request_timeout stream_timeout",
    "timeout=Timeouts(connect=...)": "connect_timeout",
    "timeout=Timeouts(first_event=..., idle=...)": "read_timeout",
    "timeout=seconds": "timeout_ms",
    "retry=RetryPolicy(...)": "retry retries retry_config retry_policy",
    "retry=RetryPolicy(max_attempts=...)": "max_retries num_retries",
    "pacing=...": "pacing",
    "limits=...": "limits",
    "headers={...}": "headers default_headers extra_headers http_headers",
    'headers={"Idempotency-Key": ...}': "idempotency_key",
    'headers={"User-Agent": ...}': "user_agent",
    "observers=[...]": "observers",
    "usage_limit=UsageLimit(...)": "usage_limit usage_limits",
    "wake=True": "wake",
}
# Settings of the pool, which a client shares with its copies.
_POOL_SETTINGS: Final = {
    "max_connections=...": "max_connections pool_size max_keepalive_connections pool_limits",
    "proxy=...": "proxy proxies trust_env",
    "ssl=...": "ssl verify verify_ssl ssl_context cert ca_bundle",
    "session=... (an aiohttp session)": "session http_client async_http_client async_client httpx_client client"
    " connector middlewares trace_configs transport",
}
# Names that are unambiguous only as client settings; as keywords of a method they may mean anything.
_CLIENT_SETTINGS: Final = {
    "token=...": "apikey auth credential credentials key personal_access_token security token_provider",
    "server_url=... or container_url=...": "azure_endpoint endpoint host server url",
    "extra_query={...} of a method": "default_query params",
    "observers=[...]": "callbacks event_hooks",
    'logging.getLogger("friendli_async")': "debug debug_logger log_level logger",
    "pacing=Pacing(...)": "rate_limit",
    "client.with_options(wake=True)": "wake",
}
# Parameters, including those of our other APIs: the hint is the one that the method has. The closest match by spelling
# is often wrong. "" maps to names that have no equivalent, but look like one of ours.
_PARAMETERS: Final = {
    "": "prompt_mode safe_prompt truncation",
    "messages input prompt": "contents conversation history input inputs message_history messages prompt prompts"
    " user_prompt",
    "input prompt": "text texts",
    "tokens": "ids input_ids token_ids",
    "chat_template_kwargs": "enable_thinking",
    "model": "adapter_route deployment_id endpoint_id engine model_id model_name",
    "n": "best_of candidate_count num_return_sequences",
    "reasoning_budget thinking reasoning": "budget_tokens thinking_budget",
    "reasoning_budget reasoning": "thinking",
    "reasoning_effort thinking": "reasoning",
    "reasoning thinking": "reasoning_effort",
    "response_format text output_config": "grammar guided_json guided_regex json_mode json_schema output_format"
    " output_schema output_type response_format response_model response_schema result_type schema text_format",
    "max_tokens max_output_tokens": "max_completion_tokens max_gen_len max_length max_new_tokens max_output_tokens"
    " max_tokens max_tokens_to_sample n_predict num_predict",
    "max_turns": "max_iter max_iterations max_rounds max_steps",
    "reask max_turns": "output_retries reask",
    "extra_query": "default_query",
    "tool_choice": "function_call",
    "tools": "functions tool",
    "stream_options": "include_usage",
    "seed": "random_seed",
    "repetition_penalty": "repeat_penalty",
    "stop_sequences": "stop",
    "stop": "stop_sequences",
    "eos_token": "stop_token_ids",
    "system": "instructions",
    "instructions": "system",
    "system instructions": "system_prompt",
}
# Keywords of single methods.
_OF_METHODS: Final = {
    "the method decides: stream() accepts an event stream, all others JSON": "accept_header_override",
    "only parse() can ask again; after a stream, send OutputError.feedback yourself": "output_retries reask",
    "it is a parameter of parse(), parse_stream() and parse_run()": "strict",
    "pass it first, by position, to parse(), parse_stream() or parse_run()": "type",
    "it is a parameter of chat.run()": (
        "before_tool between_turns concurrency decisions max_tool_result max_turns on_tool_error tool_timeout"
    ),
}
# Attributes: methods and groups.
_ATTRIBUTES: Final = {
    "cost usage": "billing costs",
    "with_options": "copy",
    "retry": "max_retries retries",
    "stream": "astream",
    "chat": "beta",
    "text_classification": "classify",
    "aclose": "close",
    "complete": "generate",
    "complete stream": "completions",
    "completions": "fim",
    "complete create": "parse",
    "complete generate transcribe tokenize classify render stream upload": "create",
    "download": "content",
    "get_spec get_info list": "get retrieve",
    "embeddings": "embedding",
    "generate": "generations",
    "tokenize": "tokenization tokenizer",
    "tool_assisted_chat": "tool_assisted",
    "transcribe stream": "transcriptions",
}
# Groups that not every deployment has.
_GROUPS: Final = {
    "serverless": "chat_render model tool_assisted_chat tool_assisted_chat_completion",
    "dedicated": "chat_render embeddings endpoint image text_classification",
    "container": "image text_classification",
}
# Features found elsewhere or nowhere in this library, and shortcuts that other clients have on the client itself.
_HINTS: Final = {
    "use friendli_async.bulk.run_all, or the command friendli-async batch": "batch batches",
    "use serverless.token.tokenize": "count_tokens",
    "every reply has it: reply.meta.status, reply.meta.headers, reply.raw": "with_raw_response",
    "every stream has it: stream.meta.status, stream.meta.headers, stream.raw()": "with_streaming_response",
    "datasets are not supported (Friendli's SDK dropped them in 0.15.1)": "dataset datasets",
}
_CLIENT_HINTS: Final = {
    "use serverless.chat.complete (or dedicated, container)": "acompletion chat_completion"
    " chat_complete complete completion generate",
    "use serverless.token.tokenize": "tokenizer",
}
# Attributes that the errors of other clients have.
_ERRORS: Final = {
    "use status_code, body (a text) and meta.headers": "response raw_response",
    "use meta.headers": "headers",
    "use meta.request_id": "request_id",
    "use str(error); only an APIStatusError has a message of the server": "message",
    "only an APIStatusError has it": "body code retry_after status_code",
    "use status_code": "http_status status",
    "use json.loads(error.body)": "error json param",
}
# Attributes that the replies of other clients have.
_REPLIES: Final = {
    "use msgspec.to_builtins(reply)": "as_dict dict model_dump to_dict",
    "use msgspec.json.encode(reply)": "json model_dump_json to_json",
    "use msgspec.structs.replace(reply, ...)": "copy model_copy",
    "the text of an answer is reply.text": "content output_text",
    "the value that parse() returns is reply.value": "output output_parsed parsed value",
    "use reply.meta.request_id": "_request_id request_id",
    "use reply.meta.headers": "_response_headers headers response_headers",
    "use reply.meta.status": "status_code",
    "use reply.meta.timing": "_response_ms elapsed",
}
# Attributes that the results of runs of agent frameworks have.
_RESULTS: Final = {
    "the text of the last answer is result.reply.text": "content final_output output text",
    "the last answer is result.reply": "choices message response",
    "only that of parse_run() has a value": "parsed value",
}


class Hinted:
    """Base of the client and its groups: the AttributeError for an unknown name suggests the right one."""

    if not TYPE_CHECKING:  # to type checkers an unknown name is an error

        def __getattr__(self, name: str) -> Any:
            hint = "" if name.startswith("_") else _attribute_hint(self, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")


class Explained:
    """Base of replies and errors: the AttributeError for a name of another client says what it is called here.

    Not of events, streams and runs: CPython 3.11 specializes no read of an attribute if there is a ``__getattr__``.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # to type checkers an unknown name is an error

        def __getattr__(self, name: str) -> Any:
            tables = (_ERRORS,) if isinstance(self, Exception) else (_REPLIES,)
            if "turns" in getattr(type(self), "__struct_fields__", ()):
                tables = (_RESULTS, _REPLIES)
            hint = _lookup(name, *tables)
            if hint is None:
                return object.__getattribute__(self, name)  # raises again: a property may have failed, such as ``meta``
            message = f"{type(self).__name__!r} object has no attribute {name!r}; {hint}"
            raise AttributeError(message, name=name, obj=self)


def _lookup(name: str, *tables: Mapping[str, str]) -> str | None:
    """Returns our name, or the hint, for a name of another library; None if the tables have none."""
    return next((ours for table in tables for ours, theirs in table.items() if name in theirs.split()), None)


def shortened(value: object) -> str:
    """Returns the beginning of a value's repr, for an error: of a whole row or reply, it would fill the log."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _suggest_nearest(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches  # imported only to raise an error

    near = get_close_matches(name, known, 1, 0.7)
    return f"; did you mean {near[0]!r}?" if near else ""


def _public_names(owner: object) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]


def _attribute_hint(owner: object, name: str) -> str:
    names = _public_names(owner)
    if name in names:
        return "; it is not set yet"  # as in a subclass that has not called ``__init__``
    plain = name.lower().removesuffix("_async")
    singular = plain.removesuffix("s")  # as nearly all groups are named
    candidates = dict.fromkeys((plain, singular, *(_lookup(plain, _ATTRIBUTES) or "").split()))
    if known := [candidate for candidate in candidates if candidate in names]:
        return f"; use {' or '.join(known[:2])}"
    is_client = "with_options" in names
    groups = {each: _public_names(getattr(owner, each)) if is_client else _GROUPS[each].split() for each in _GROUPS}
    for candidate in candidates:
        if paths := [f"{deployment}.{candidate}" for deployment, members in groups.items() if candidate in members]:
            return f"; use {' or '.join(paths)}"
    if hint := _lookup(plain, _HINTS, _CLIENT_HINTS if is_client else {}):
        return f"; {hint}"
    if is_client and _lookup(plain, _SETTINGS):
        return "; of the settings, only timeout and retry can be read; with_options(...) returns a copy with others"
    return _suggest_nearest(plain, names) or f"; it has {', '.join(names)}"


def setting_hint(name: str) -> str | None:
    """Returns how and where to set a client setting that was passed to a method; None if it is not a setting."""
    if ours := _lookup(name, _SETTINGS):
        return f"it is a client setting; use client.with_options({ours})"
    ours = _lookup(name, _POOL_SETTINGS)
    return ours and f"it is a client setting; use AsyncFriendli({ours})"


def option_hint(name: str, known: Collection[str]) -> str:
    """Returns a hint for an unknown keyword of a client or ``with_options``, to append to an error message."""
    ours = _lookup(name, _CLIENT_SETTINGS, _SETTINGS, _POOL_SETTINGS if "session" in known else {})
    if ours:
        return f"; use {ours}"
    if setting := setting_hint(name):
        return f"; {setting}"
    return _suggest_nearest(name, known) or f"; it takes {', '.join(known)}"


def parameter_hint(name: str, known: Collection[str]) -> str:
    """Returns a hint for an unknown keyword of a method that has the ``known`` ones, to append to an error message."""
    plain = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).lower()  # maxTokens
    ours = _lookup(plain, _PARAMETERS)
    candidates = [plain, *(ours or "").split()]
    if "response_format" in candidates and "strict" in known:
        return "; the type of the answer, the first argument, determines its format"
    if "response_format" in candidates and "max_turns" in known:
        return "; a run answers with text: use chat.parse_run(T, ...)"
    if accepted := [candidate for candidate in candidates if candidate in known]:
        return f"; use {accepted[0]!r}"
    if "system" in candidates and "messages" in known:
        return "; use a message with the role 'system'"
    if hint := _lookup(plain, _OF_METHODS):
        return f"; {hint}"
    if ours is None and (near := _suggest_nearest(plain, known)):
        return near
    extra = next((other for other in ("extra_body", "extra_query") if other in known), None)
    return f"; if the server knows it, pass it in {extra}={{...}}" if extra is not None else ""
