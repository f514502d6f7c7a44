"""What the embedded server's made-up model answers, the same in every API. It depends only on the request.

The model repeats the last user message, or the results of the tools that were called for it. It calls the functions
that the message mentions (they share a word with the function's name), or that the request asks for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from friendli_async.testing.sample import sample
from friendli_async.testing.steps import Step

Body = Mapping[str, Any]

_MAX_TOKENS: Final = 4096
_ARGUMENT_PIECE: Final = 8
_TOKEN: Final = re.compile(r"\S*\s+|\S+")
_JSON_OBJECT: Final = {"type": "object", "properties": {"answer": {"type": "string"}}}


@dataclass(frozen=True)
class FunctionCall:
    """A call of one of the caller's functions, with its arguments: a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Turn:
    """What the model says.

    Args:
        content: The tokens of the text.
        reasoning: The tokens of the reasoning, sent first.
        calls: The function calls, sent after the text.
        finish_reason: `stop`, `length` or `tool_calls`.
        prelude: Steps to play before all of that.
    """

    content: tuple[str, ...]
    reasoning: tuple[str, ...] = ()
    calls: tuple[FunctionCall, ...] = ()
    finish_reason: str = "stop"
    prelude: Sequence[Step] = ()

    @property
    def tokens(self) -> int:
        """How many tokens the model has generated; a call counts as one."""
        return len(self.content) + len(self.reasoning) + len(self.calls)

    def within(self, max_tokens: float | None) -> Turn:
        """Return the turn with its text truncated (None: to the server's limit) and the finish reason that follows."""
        limit = _MAX_TOKENS if max_tokens is None else min(_MAX_TOKENS, max(0, int(max_tokens)))
        if len(self.content) > limit:
            return replace(self, content=self.content[:limit], finish_reason="length")
        return replace(self, finish_reason="tool_calls") if self.calls else self


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A request to the model, in the form that the APIs have in common.

    Args:
        messages: The conversation: role and content of each message.
        results: The results of the tools that have been called since the last user message.
        functions: The functions that may be called: name and parameters, a JSON Schema or None.
        tool_choice: `none`, `required` to call functions whatever the message mentions, or anything else.
        tool_name: The only function to call.
        parallel: Whether several functions may be called at once.
        schema: JSON Schema of the text.
        reasons: Whether the model reasons.
    """

    messages: Sequence[Body]
    results: Sequence[str] = ()
    functions: Sequence[tuple[str, Body | None]] = ()
    tool_choice: object = None
    tool_name: str | None = None
    parallel: bool = False
    schema: Body | None = None
    reasons: bool = False

    @property
    def text(self) -> str:
        """The last user message; may be empty."""
        texts = (text_of(message["content"]) for message in reversed(self.messages) if message.get("role") == "user")
        return next(texts, "")

    @property
    def tokens(self) -> int:
        """How many tokens the conversation has."""
        return count_tokens(text_of(message.get("content")) for message in self.messages)

    def answer(self) -> Turn:
        """Return the answer: calls or text."""
        thought = f"The last message has {len(tokenize(self.text))} words. I repeat it." if self.reasons else ""
        if calls := self.calls():
            return Turn((), tokenize(thought), calls)
        return Turn(tokenize(self._text()), tokenize(thought))

    def calls(self) -> tuple[FunctionCall, ...]:
        """Return the function calls, with arguments that match the parameters.

        After the results of tools there are none, unless calls are required: then the functions are called that have
        not been called yet, or else the last one, since its result may have been an error.
        """
        if self.tool_choice == "none" or (self.results and self.tool_choice != "required"):
            return ()
        if self.tool_name is not None:
            called = [function for function in self.functions if function[0] == self.tool_name]
        elif self.tool_choice == "required":
            called = [*(self.functions[len(self.results) :] or self.functions[-1:])]
        else:
            called = [function for function in self.functions if _mentions(self.text, function[0])]
        return tuple(
            FunctionCall(name, json.dumps(sample(parameters or {"type": "object"}, self.text)))
            for name, parameters in (called if self.parallel else called[:1])
        )

    def _text(self) -> str:
        if self.results:
            text = f"The tool says: {', '.join(self.results)}"
        else:
            text = f"You said: {self.text}" if self.text else "Hello! How can I help?"
        return text if self.schema is None else json.dumps(sample(self.schema, text))


def json_schema_of(response_format: Body, schema: Body | None) -> Body | None:
    """Return the schema of the text that a response format, with this schema in it, asks for."""
    schemas = {"json_object": _JSON_OBJECT, "json_schema": schema}
    return schemas.get(response_format.get("type", "text"))


def text_of(content: object) -> str:
    """Return the text of a message, or of the result of a tool: of its text parts, if it is a list of parts."""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in cast("Sequence[Body]", content or ()) if "text" in part)


def count_tokens(texts: Iterable[str]) -> int:
    """Return how many tokens some texts have."""
    return sum(len(tokenize(text)) for text in texts)


def tokenize(text: str) -> tuple[str, ...]:
    """Split text into the tokens of this server, which concatenate to it: words with the whitespace that follows."""
    return tuple(_TOKEN.findall(text))


def split_arguments(arguments: str) -> list[str]:
    """Split the arguments of a tool call into the pieces that are streamed."""
    return [arguments[at : at + _ARGUMENT_PIECE] for at in range(0, len(arguments), _ARGUMENT_PIECE)]


def _mentions(text: str, name: str) -> bool:
    """Whether a text contains a word of a function's name that has at least three letters."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name) if len(word) > 2}
    return not words.isdisjoint(re.findall(r"[a-z]+", text.lower()))
