"""The embedded server's chat replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import takewhile
from typing import cast

from friendli_async.testing.arguments import check_type
from friendli_async.testing.frames import token_counts
from friendli_async.testing.received import ReceivedRequest, section
from friendli_async.testing.script import Script, interleaved, json_body, script, status, wants_usage
from friendli_async.testing.steps import Step, chunk, done, finish, usage
from friendli_async.testing.turns import Body, FunctionCall, Prompt, Turn, json_schema_of, split_arguments, text_of

__all__ = ["text", "tool_calls"]


def answer_chat(request: ReceivedRequest) -> Script:
    """Answer a validated chat request."""
    body = request.json_object
    if body.get("tools") and section(body, "response_format").get("type", "text") != "text":  # as documented
        return status(400, message="response_format and tools cannot be used together")
    return speak(request, prompt_of(body).answer())


def prompt_of(body: Body) -> Prompt:
    """Return the prompt of a chat request, given its JSON object."""
    messages: Sequence[Body] = body["messages"]
    functions: list[Body] = [tool["function"] for tool in body.get("tools") or () if tool["type"] == "function"]
    choice: object = body.get("tool_choice")
    wanted = section(body, "response_format")
    recent = takewhile(lambda each: each["role"] != "user", reversed(messages))
    results = [text_of(each["content"]) for each in recent if each["role"] == "tool"]
    return Prompt(
        messages=messages,
        results=results[::-1],
        functions=[(function["name"], function.get("parameters")) for function in functions],
        tool_choice=choice,
        tool_name=cast("Body", choice)["function"]["name"] if isinstance(choice, dict) else None,
        parallel=bool(body.get("parallel_tool_calls")),
        schema=json_schema_of(wanted, section(wanted, "json_schema").get("schema")),
        reasons=bool(body.get("parse_reasoning") and body.get("include_reasoning")),
    )


def render(request: ReceivedRequest) -> Script:
    """Answer a request to render a chat, with a made-up template."""
    body = request.json_object
    turns = [f"<|{message['role']}|>\n{text_of(message.get('content'))}\n" for message in body["messages"]]
    tools = [f"<|tool|>\n{tool['function']['name']}\n" for tool in body.get("tools") or ()]
    return json_body({"text": "".join([*tools, *turns, "<|assistant|>\n"])})


def speak(request: ReceivedRequest, turn: Turn) -> Script:
    """Build the reply of the requested form: `n` choices, truncated to `max_tokens`, streamed or not.

    The turn is the first choice; the others have their number in front of the text.
    """
    body = request.json_object
    count = 1 if body.get("n") is None else int(body["n"])
    others = [
        replace(turn, content=(f"({number}) ", *turn.content) if turn.content else (), prelude=())
        for number in range(2, count + 1)
    ]
    turns = [each.within(body.get("max_tokens")) for each in (turn, *others)]
    return _reply(request, turns, prompt_of(body).tokens)


def tool_calls(*calls: tuple[str, Mapping[str, object] | str]) -> Callable[[ReceivedRequest], Script]:
    """Reply to a chat request with function calls, streamed or not, as requested.

    Args:
        calls: Name and arguments of each; text arguments are sent unchanged, even if they are not JSON.

    Returns:
        The answer, to be enqueued.

    Raises:
        TypeError: The arguments cannot be encoded as JSON.
    """
    turn = Turn(
        (),
        calls=tuple(
            FunctionCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments))
            for name, arguments in calls
        ),
    )
    return lambda request: speak(request, turn)


@dataclass(frozen=True)
class _TextReply:
    """A complete chat reply with a given text, streamed or not, as requested. Created by `text`."""

    pieces: tuple[str, ...]
    reasoning: tuple[str, ...] = ()
    finish_reason: str = "stop"
    prompt_tokens: int = 1

    def __repr__(self) -> str:
        values = [(option.name, getattr(self, option.name), option.default) for option in fields(self)[1:]]
        options = [f"{name}={value!r}" for name, value, default in values if value != default]
        return f"text({', '.join([*map(repr, self.pieces), *options])})"  # reports of unused replies show it

    def __call__(self, request: ReceivedRequest) -> Script:
        """Build the script for one request, whose `stream` and `stream_options` determine its form."""
        turn = Turn(self.pieces, self.reasoning, finish_reason=self.finish_reason)
        return _reply(request, [turn], self.prompt_tokens)


def text(
    *pieces: str, reasoning: Sequence[str] = (), finish_reason: str = "stop", prompt_tokens: int = 1
) -> Callable[[ReceivedRequest], Script]:
    """Reply to a chat request with a text, streamed or not, as requested.

    Args:
        pieces: The text of each chunk; joined if the reply is not streamed.
        reasoning: The reasoning of each chunk, sent first.
        finish_reason: Why the model stopped.
        prompt_tokens: Tokens of the request, for the usage.

    Returns:
        The answer, to be enqueued.

    Raises:
        TypeError: A piece is not text.
    """
    for piece in pieces:
        check_type(piece, str, "a piece of text()", "text")
    return _TextReply(pieces, tuple(reasoning), finish_reason, prompt_tokens)


# --- streamed and plain replies --------------------------------------------------------------------------------------


def _reply(request: ReceivedRequest, turns: Sequence[Turn], prompt_tokens: int) -> Script:
    counts = (prompt_tokens, sum(turn.tokens for turn in turns))
    return (_stream if request.json_object.get("stream") else _whole)(request, turns, counts)


def _stream(request: ReceivedRequest, turns: Sequence[Turn], counts: tuple[int, int]) -> Script:
    body = request.json_object
    steps: list[Step] = [chunk("", role="assistant", index=index) for index in range(len(turns))]
    steps += interleaved(_choice_steps(body, request, turn, index) for index, turn in enumerate(turns))
    if wants_usage(body):
        steps.append(usage(*counts))
    return script(*steps, done())


def _choice_steps(body: Body, request: ReceivedRequest, turn: Turn, index: int) -> Iterator[Step]:
    yield from turn.prelude
    for piece in turn.reasoning:
        yield chunk(reasoning=piece, index=index)
    for piece in turn.content:
        yield chunk(piece, index=index, logprobs=_logprobs(body, [piece]))
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
        message: dict[str, object] = {"role": "assistant", "content": "".join(turn.content)}
        if turn.reasoning:
            message["reasoning_content"] = "".join(turn.reasoning)
        if turn.calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [
                {
                    "id": _call_id(request, index, number),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for number, call in enumerate(turn.calls)
            ]
        logprobs = _logprobs(request.json_object, turn.content)
        choices.append({"index": index, "message": message, "finish_reason": turn.finish_reason, "logprobs": logprobs})
    return json_body(request.identity.completion("chat.completion", choices, token_counts(*counts)))


def _call_id(request: ReceivedRequest, index: int, number: int) -> str:
    return f"call_{request.number:06d}_{index}_{number}"


def _logprobs(body: Body, tokens: Sequence[str]) -> Body | None:
    if not body.get("logprobs"):
        return None
    top = int(body.get("top_logprobs") or 0)
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
