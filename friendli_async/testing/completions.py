"""The embedded server's text completions: it repeats the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from friendli_async.testing.frames import token_counts
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import InvalidRequestError
from friendli_async.testing.script import Script, interleaved, json_body, script, wants_usage
from friendli_async.testing.steps import Step, done, event
from friendli_async.testing.text_operations import encode, texts_of
from friendli_async.testing.turns import Body, Turn, count_tokens, tokenize


def complete(request: ReceivedRequest) -> Script:
    """Answer a validated completion request."""
    body = request.json_object
    if "prompt" in body and "tokens" in body:
        raise InvalidRequestError("body", "tokens", "Give prompt or tokens, not both")
    prompts = texts_of(body, "prompt")
    count = 1 if body.get("n") is None else int(body["n"])
    texts = [f"({number + 1}) {prompt}" if number else prompt for prompt in prompts for number in range(count)]
    turns = [Turn(tokenize(text)).within(body.get("max_tokens")) for text in texts]
    usage = token_counts(count_tokens(prompts), sum(turn.tokens for turn in turns))
    if body.get("stream"):
        return _stream(request, turns, usage)
    choices = [
        {
            "index": index,
            "text": "".join(turn.content),
            "seed": index,
            "finish_reason": turn.finish_reason,
            "tokens": encode("".join(turn.content)),
            "logprobs": _logprobs(body, turn.content, 0),
        }
        for index, turn in enumerate(turns)
    ]
    return json_body({**_head(request), "choices": choices, "usage": usage})


def _head(request: ReceivedRequest) -> dict[str, object]:
    return {"id": f"cmpl-{request.number:06d}", "object": "text_completion", "model": request.identity.model}


def _logprobs(body: Body, pieces: Sequence[str], offset: int) -> dict[str, object] | None:
    if not body.get("logprobs"):
        return None
    top = int(body["logprobs"])
    offsets = [offset + sum(map(len, pieces[:at])) for at in range(len(pieces))]
    return {
        "text_offset": offsets,
        "token_logprobs": [-0.125] * len(pieces),
        "tokens": list(pieces),
        "top_logprobs": [{f"{piece}{rank or ''}": -0.125 - rank for rank in range(top)} for piece in pieces],
    }


def _stream(request: ReceivedRequest, turns: Sequence[Turn], usage: dict[str, object]) -> Script:
    body, head = request.json_object, {**_head(request), "created": request.created}

    def chunk(**choice: object) -> Step:
        return event({**head, "choices": [choice], "usage": None})

    rows: list[list[Step]] = []
    for index, turn in enumerate(turns):
        offset, row = 0, list[Step]()
        for piece in turn.content:
            logprobs = _logprobs(body, [piece], offset)
            row.append(chunk(index=index, text=piece, token=None, logprobs=logprobs, finish_reason=None))
            offset += len(piece)
        rows.append([*row, chunk(index=index, text="", token=None, logprobs=None, finish_reason=turn.finish_reason)])
    steps = interleaved(rows)
    if wants_usage(body):
        steps.append(event({**head, "choices": [], "usage": usage}))
    return script(*steps, done())
