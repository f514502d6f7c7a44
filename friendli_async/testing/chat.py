"""The embedded server's chat replies: text that depends only on the request.

It repeats the last user message. For a `response_format` it builds a matching JSON document. It calls the functions
that the message mentions (they share a word with the function's name), or that `tool_choice` requests; after tool
results it repeats these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile, zip_longest
from typing import Any, Final, cast

from friendli_async.testing.arguments import describe
from friendli_async.testing.frames import token_counts
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import deployed
from friendli_async.testing.sample import sample
from friendli_async.testing.script import Script, json_body, script, status, wants_usage
from friendli_async.testing.steps import Step, chunk, done, finish, usage

__all__ = [
    "ROUTES",
    "Body",
    "FunctionCall",
    "Turn",
    "answer_chat",
    "function_calls",
    "last_user_text",
    "mentions",
    "message_text",
    "reply_to",
    "speak",
    "split_arguments",
    "tokenize",
    "tool_calls",
]

Body = Mapping[str, Any]

_MAX_CHOICES: Final = 128
_MAX_TOKENS: Final = 4096
_MAX_TOP_LOGPROBS: Final = 20
_ARGUMENT_PIECE: Final = 8
_TOKEN: Final = re.compile(r"\S*\s+|\S+")


@dataclass(frozen=True)
class FunctionCall:
    """A call of one of the caller's functions.

    Args:
        name: Name of the function.
        arguments: Its arguments, a JSON object as text.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class Turn:
    """The content of one choice.

    Args:
        content: The tokens of the text.
        reasoning: The tokens of the reasoning, sent first.
        calls: The function calls, sent after the text.
        finish_reason: Its finish reason.
        interludes: Steps to play before the token at that position.
    """

    content: tuple[str, ...]
    reasoning: tuple[str, ...] = ()
    calls: tuple[FunctionCall, ...] = ()
    finish_reason: str = "stop"
    interludes: Mapping[int, Sequence[Step]] = field(default_factory=dict[int, Sequence[Step]])


def answer_chat(request: ReceivedRequest) -> Script:
    """Answer a validated chat request.

    Args:
        request: The request.

    Returns:
        An event stream, or one JSON document.
    """
    body = request.json_object
    wanted: Body = body.get("response_format") or {}
    if body.get("tools") and wanted.get("type", "text") != "text":  # by the documentation of Friendli's API
        return status(400, message="response_format and tools cannot be used together")
    calls = function_calls(body)
    text = "" if calls else _text(body)
    return speak(request, Turn(tokenize(text), _reasoning(body), calls))


def speak(request: ReceivedRequest, turn: Turn) -> Script:
    """Build the reply of the requested form: `n` choices, truncated to `max_tokens`, streamed or not.

    Args:
        request: The request.
        turn: The first choice; the others have their number in front of the text.

    Returns:
        An event stream, or one JSON document.
    """
    body = request.json_object
    count = 1 if body.get("n") is None else int(body["n"])
    if not 1 <= count <= _MAX_CHOICES:
        message = f"n must be between 1 and {_MAX_CHOICES}, not {count}"
        return status(400, message=message)
    turns = [_truncate(body, turn)]
    for index in range(1, count):
        other = replace(turn, content=(f"({index + 1}) ", *turn.content) if turn.content else (), interludes={})
        turns.append(_truncate(body, other))
    prompt = sum(len(tokenize(message_text(message))) for message in body["messages"])
    counts = (prompt, sum(len(each.content) + len(each.reasoning) + len(each.calls) for each in turns))
    return _stream(request, turns, counts) if body.get("stream") else _whole(request, turns, counts)


def tokenize(text: str) -> tuple[str, ...]:
    """Split text into the tokens of this server: words with the whitespace that follows.

    Args:
        text: Any text.

    Returns:
        The tokens, which concatenate to the text.
    """
    return tuple(_TOKEN.findall(text))


def split_arguments(arguments: str) -> list[str]:
    """Split the arguments of a tool call into the pieces that are streamed.

    Args:
        arguments: The arguments, a JSON object as text.
    """
    return [arguments[at : at + _ARGUMENT_PIECE] for at in range(0, len(arguments), _ARGUMENT_PIECE)]


def reply_to(prompt: str) -> str:
    """Return the text that answers a prompt.

    Args:
        prompt: The text of the last user message; may be empty.
    """
    return f"You said: {prompt}" if prompt else "Hello! How can I help?"


def last_user_text(body: Body) -> str:
    """Return the text of the last user message.

    Args:
        body: The request's JSON object.

    Returns:
        The text of its joined parts; empty if there is none.
    """
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            return message_text(message)
    return ""


def function_calls(body: Body) -> tuple[FunctionCall, ...]:
    """Choose the functions to call.

    A function is called if `tool_choice` names it or is `required`, or if the last user message mentions it and
    `tool_choice` is not `none`. Only the first of several is called unless `parallel_tool_calls` is true. None is
    called after a tool result.

    Args:
        body: The request's JSON object.

    Returns:
        The calls, with arguments that match the parameters of the functions.
    """
    functions: list[Body] = [tool["function"] for tool in body.get("tools") or () if tool["type"] == "function"]
    choice: object = body.get("tool_choice")
    messages: Sequence[Body] = body["messages"]
    if messages and messages[-1]["role"] == "tool":
        return ()
    text = last_user_text(body)
    if isinstance(choice, dict):
        name: str = cast("Body", choice)["function"]["name"]
        functions = [function for function in functions if function["name"] == name]
    elif choice == "none":
        return ()
    elif choice != "required":
        functions = [function for function in functions if mentions(text, function["name"])]
    if not body.get("parallel_tool_calls"):
        functions = functions[:1]
    return tuple(
        FunctionCall(function["name"], json.dumps(sample(function.get("parameters", {"type": "object"}), text)))
        for function in functions
    )


def mentions(text: str, name: str) -> bool:
    """Whether a text contains a word of a function's name that has at least three letters."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name) if len(word) > 2}
    return not words.isdisjoint(re.findall(r"[a-z]+", text.lower()))


def tool_calls(*calls: tuple[str, Mapping[str, object] | str]) -> Callable[[ReceivedRequest], Script]:
    """Reply to a chat request with function calls, streamed or not, as requested.

    Args:
        calls: Name and arguments of each; text arguments are sent unchanged, even if they are not JSON.

    Returns:
        The answer, to be enqueued.

    Raises:
        TypeError: A call is not a pair of a name and its arguments, or the arguments cannot be encoded as JSON.
    """
    for call in calls:
        if not _is_call(call):
            raise TypeError(f'a call must be a pair such as ("weather", {{"city": "Oslo"}}), not {describe(call)}')
    built = tuple(
        FunctionCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments))
        for name, arguments in calls
    )
    return lambda request: speak(request, Turn((), calls=built))


def _is_call(call: object) -> bool:
    match call:
        case (str(), str() | Mapping()):
            return True
        case _:
            return False


def _text(body: Body) -> str:
    messages: Sequence[Body] = body["messages"]
    wanted: Body = body.get("response_format") or {}
    results = [message_text(message) for message in takewhile(_is_tool_result, reversed(messages))]
    text = f"The tool says: {', '.join(reversed(results))}" if results else reply_to(last_user_text(body))
    if wanted.get("type") == "json_object":
        text = json.dumps({"answer": text})
    elif wanted.get("type") == "json_schema":
        text = json.dumps(sample(wanted["json_schema"]["schema"], text))
    for stop in body.get("stop") or ():
        text = text.partition(stop)[0] if stop else text
    return text


def _is_tool_result(message: Body) -> bool:
    return bool(message["role"] == "tool")


def message_text(message: Body) -> str:
    """Return the text of a message.

    Args:
        message: The message; only its text parts are used.
    """
    content: object = message.get("content")
    if isinstance(content, str):
        return content
    parts = cast("Sequence[Body]", content or ())
    return " ".join(part["text"] for part in parts if part["type"] == "text")


def _reasoning(body: Body) -> tuple[str, ...]:
    if not (body.get("parse_reasoning") and body.get("include_reasoning")):
        return ()
    return tokenize(f"The last message has {len(tokenize(last_user_text(body)))} words. I repeat it.")


def _truncate(body: Body, turn: Turn) -> Turn:
    max_tokens: object = body.get("max_tokens")
    limit = min(_MAX_TOKENS, max(0, int(cast("float", max_tokens)))) if max_tokens is not None else _MAX_TOKENS
    if len(turn.content) > limit:
        return replace(turn, content=turn.content[:limit], finish_reason="length")
    return replace(turn, finish_reason="tool_calls") if turn.calls else turn


# --- streamed and plain replies --------------------------------------------------------------------------------------


def _stream(request: ReceivedRequest, turns: Sequence[Turn], counts: tuple[int, int]) -> Script:
    body = request.json_object
    steps: list[Step] = [chunk("", role="assistant", index=index) for index in range(len(turns))]
    choices = [_choice_steps(body, request, turn, index) for index, turn in enumerate(turns)]
    # The choices are generated in parallel, so their chunks are interleaved.
    steps += [step for row in zip_longest(*choices) for step in row if step is not None]
    if wants_usage(body):
        steps.append(usage(*counts))
    return script(*steps, done())


def _choice_steps(body: Body, request: ReceivedRequest, turn: Turn, index: int) -> Iterator[Step]:
    for piece in turn.reasoning:
        yield chunk(reasoning=piece, index=index)
    for position, piece in enumerate(turn.content):
        yield from turn.interludes.get(position, ())
        yield chunk(piece, index=index, logprobs=_logprobs(body, [piece]))
    for position, late in turn.interludes.items():
        if position >= len(turn.content):
            yield from late
    for number, call in enumerate(turn.calls):
        start = {"name": call.name, "arguments": ""}
        first = {"index": number, "id": _call_id(request, index, number), "type": "function", "function": start}
        yield chunk(tool_calls=[first], index=index)
        for piece in split_arguments(call.arguments):
            more = {"index": number, "type": "function", "function": {"arguments": piece}}
            yield chunk(tool_calls=[more], index=index)
    yield finish(turn.finish_reason, index=index)


def _whole(request: ReceivedRequest, turns: Sequence[Turn], counts: tuple[int, int]) -> Script:
    choices: list[Body] = []
    for index, turn in enumerate(turns):
        message: dict[str, object] = {"role": "assistant", "content": "".join(turn.content) or None}
        if turn.reasoning:
            message["reasoning_content"] = "".join(turn.reasoning)
        if turn.calls:
            message["tool_calls"] = [
                {
                    "id": _call_id(request, index, number),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for number, call in enumerate(turn.calls)
            ]
        else:
            message["content"] = "".join(turn.content)
        logprobs = _logprobs(request.json_object, turn.content)
        choices.append({"index": index, "message": message, "finish_reason": turn.finish_reason, "logprobs": logprobs})
    return json_body(request.identity.completion(choices, token_counts(*counts)))


def _call_id(request: ReceivedRequest, index: int, number: int) -> str:
    return f"call_{request.number:06d}_{index}_{number}"


def _logprobs(body: Body, tokens: Sequence[str]) -> Body | None:
    if not body.get("logprobs"):
        return None
    top = max(0, min(_MAX_TOP_LOGPROBS, int(body.get("top_logprobs") or 0)))
    return {
        "content": [
            {**_logprob(token, 0), "top_logprobs": [_logprob(token, k) for k in range(top)]} for token in tokens
        ]
    }


def _logprob(token: str, rank: int) -> dict[str, object]:
    # The most likely alternative is the token itself, the others are made-up variants.
    named = token if rank == 0 else f"{token}{rank}"
    return {
        "token": named,
        "logprob": -0.125 * (1 + len(token) % 4) - rank,
        "bytes": list(named.encode("utf-8", "surrogatepass")),
    }


ROUTES: Final = deployed(
    "/v1/chat/completions",
    answer_chat,
    body="{}ChatCompletionBody",
    reply="ServerlessChatCompleteSuccess",
    events="StreamedChatResult",
)
"""Chat, for every deployment."""
