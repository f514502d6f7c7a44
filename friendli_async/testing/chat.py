"""What the embedded server answers to a chat request: text that depends on the request alone.

It repeats the last user message. With a `response_format` it makes a JSON document that fits. It calls functions that
the message speaks of (a word of it is a word of the function's name), or that `tool_choice` asks for; after the results
of tools it repeats these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile, zip_longest
from typing import Any, Final, cast

from friendli_async.testing.frames import error_body, token_counts
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import deployed
from friendli_async.testing.sample import sample
from friendli_async.testing.script import Script, json_body, script, wants_usage
from friendli_async.testing.steps import Step, chunk, done, finish, usage

__all__ = [
    "ROUTES",
    "Body",
    "FunctionCall",
    "Turn",
    "answer_chat",
    "function_calls",
    "last_user_text",
    "message_text",
    "speak",
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
    """What one choice says.

    Args:
        content: The tokens of the text.
        reasoning: The tokens of the reasoning text, which come first.
        calls: The functions called, after the text.
        finish_reason: Why it ends.
        interludes: Steps that are played before the token of that position.
    """

    content: tuple[str, ...]
    reasoning: tuple[str, ...] = ()
    calls: tuple[FunctionCall, ...] = ()
    finish_reason: str = "stop"
    interludes: Mapping[int, Sequence[Step]] = field(default_factory=dict[int, Sequence[Step]])


def answer_chat(request: ReceivedRequest) -> Script:
    """Answer a chat request that passed the checks.

    Args:
        request: What came in.

    Returns:
        An event stream, or one JSON document.
    """
    body = request.json_object
    calls = function_calls(body)
    text = "" if calls else _text(body)
    return speak(request, Turn(tokenize(text), _reasoning(body), calls))


def speak(request: ReceivedRequest, turn: Turn) -> Script:
    """Put a turn into the form that the request asks for: `n` choices, cut at `max_tokens`, streamed or whole.

    Args:
        request: What came in.
        turn: What the first choice says; the others say it with their number in front.

    Returns:
        An event stream, or one JSON document.
    """
    body = request.json_object
    count = 1 if body.get("n") is None else int(body["n"])
    if not 1 <= count <= _MAX_CHOICES:
        message = f"n must be between 1 and {_MAX_CHOICES}, not {count}"
        return json_body(error_body(message, kind="invalid_request_error"), status=400)
    turns = [_cut(body, turn)]
    for index in range(1, count):
        other = replace(turn, content=(f"({index + 1}) ", *turn.content) if turn.content else (), interludes={})
        turns.append(_cut(body, other))
    prompt = sum(len(tokenize(message_text(message))) for message in body["messages"])
    counts = (prompt, sum(len(each.content) + len(each.reasoning) + len(each.calls) for each in turns))
    return _stream(request, turns, counts) if body.get("stream") else _whole(request, turns, counts)


def tokenize(text: str) -> tuple[str, ...]:
    """Split text into the pieces that this server calls tokens: words with the blanks behind them.

    Args:
        text: Any text.

    Returns:
        The pieces; joined, they give the text again.
    """
    return tuple(_TOKEN.findall(text))


def last_user_text(body: Body) -> str:
    """Give the text of the last user message.

    Args:
        body: The request's JSON object.

    Returns:
        The text, its parts joined; empty if there is none.
    """
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            return message_text(message)
    return ""


def function_calls(body: Body) -> tuple[FunctionCall, ...]:
    """Choose the functions to call.

    A function is called when `tool_choice` names it, or is `required`, or the last user message speaks of it and
    `tool_choice` is not `none`. Of several only the first one is, unless `parallel_tool_calls` is true. None is in
    reply to the result of a tool.

    Args:
        body: The request's JSON object.

    Returns:
        The calls, with arguments that fit the functions' parameters.
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
        functions = [function for function in functions if _speaks_of(text, function["name"])]
    if not body.get("parallel_tool_calls"):
        functions = functions[:1]
    return tuple(
        FunctionCall(function["name"], json.dumps(sample(function.get("parameters", {"type": "object"}), text)))
        for function in functions
    )


def _speaks_of(text: str, name: str) -> bool:
    """Whether a word of a function's name, of at least three letters, is a word of a text."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name) if len(word) > 2}
    return not words.isdisjoint(re.findall(r"[a-z]+", text.lower()))


def tool_calls(*calls: tuple[str, Mapping[str, object] | str]) -> Callable[[ReceivedRequest], Script]:
    """Reply to a chat request by calling functions, streamed in pieces or whole, as the request asks.

    Args:
        calls: Name and arguments of each; arguments that are text go out as they are, JSON or not.

    Returns:
        The answer, to be enqueued.
    """
    made = tuple(
        FunctionCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments))
        for name, arguments in calls
    )
    return lambda request: speak(request, Turn((), calls=made))


def _text(body: Body) -> str:
    messages: Sequence[Body] = body["messages"]
    wanted: Body = body.get("response_format") or {}
    results = [message_text(message) for message in takewhile(_is_result, reversed(messages))]
    if results:
        text = f"The tool says: {', '.join(reversed(results))}"
    else:
        said = last_user_text(body)
        text = f"You said: {said}" if said else "Hello! How can I help?"
    if wanted.get("type") == "json_object":
        text = json.dumps({"answer": text})
    elif wanted.get("type") == "json_schema":
        text = json.dumps(sample(wanted["json_schema"]["schema"], text))
    for stop in body.get("stop") or ():
        text = text.partition(stop)[0] if stop else text
    return text


def _is_result(message: Body) -> bool:
    return bool(message["role"] == "tool")


def message_text(message: Body) -> str:
    """Give the text of a message.

    Args:
        message: The message; of its parts only those of text count.
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


def _cut(body: Body, turn: Turn) -> Turn:
    asked: object = body.get("max_tokens")
    limit = min(_MAX_TOKENS, max(0, int(cast("float", asked)))) if asked is not None else _MAX_TOKENS
    if len(turn.content) > limit:
        return replace(turn, content=turn.content[:limit], finish_reason="length")
    return replace(turn, finish_reason="tool_calls") if turn.calls else turn


# --- the two forms of a reply ----------------------------------------------------------------------------------------


def _stream(request: ReceivedRequest, turns: Sequence[Turn], counts: tuple[int, int]) -> Script:
    body = request.json_object
    steps: list[Step] = [chunk("", role="assistant", index=index) for index in range(len(turns))]
    choices = [_choice_steps(body, request, turn, index) for index, turn in enumerate(turns)]
    # The choices are generated side by side, so their chunks are interleaved.
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
        for at in range(0, len(call.arguments), _ARGUMENT_PIECE):
            more = {"arguments": call.arguments[at : at + _ARGUMENT_PIECE]}
            yield chunk(tool_calls=[{"index": number, "type": "function", "function": more}], index=index)
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
    # The most likely alternative is the token itself; each further one is a made-up variant, less likely.
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
"""Chat, on every deployment."""
