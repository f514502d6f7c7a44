"""The conversation of a run: it grows by the answers of the model and the results of their tool calls."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import msgspec

from friendli_async._core.body.arguments import check_values
from friendli_async._core.body.json_values import to_builtins
from friendli_async._json import arguments_json, is_json_object
from friendli_async.chat.inputs import Conversation, Message, Messages, extra_body_of, to_request_message
from friendli_async.chat.replies import ChatMessage
from friendli_async.errors import ArgumentError, TurnLimitError
from friendli_async.replies import FunctionCall, ToolCall, Usage, add_usage

if TYPE_CHECKING:
    from friendli_async.chat.collector import ChatStream
    from friendli_async.chat.inputs import BetweenTurns
    from friendli_async.chat.replies import ChatCompletion
    from friendli_async.chat.tool_loop import RunSettings, ToolRunner

_OpenTurn = Callable[[Messages, Mapping[str, object]], "ChatStream"]
"""Creates the stream of a turn from the conversation so far and the options, without opening it."""


class Transcript:
    """The conversation of a run, and what its turns have used.

    Args:
        open_turn: Creates the streams of the turns.
        messages: The given conversation.
        options: The options of each turn but the first.
        settings: The settings of the run. Its decisions are on the calls at the end of the conversation; None if the
            model is to answer it.

    Attributes:
        messages: The conversation so far as plain dicts.
        pending: The calls at the end of the given conversation that have to be run, or refused, before the first turn.
        usage: The usage of all turns.
        turns: Number of finished turns.
        has_grown: Whether anything has been added to the given conversation: what was done for it must not be repeated.
        between_turns: The option of the run.

    Raises:
        ArgumentError: The decisions are not those on the calls that have no result.
    """

    def __init__(
        self,
        open_turn: _OpenTurn,
        messages: Messages,
        options: dict[str, object],
        settings: RunSettings,
    ) -> None:
        plain = _plain(messages)
        self.messages: Conversation = plain
        self.pending: tuple[ToolCall, ...] = ()
        self.usage: Usage | None = None
        self.turns: int = 0
        self.has_grown: bool = False
        self._open = open_turn
        self._options = options
        self._limit = settings.max_turns
        self.between_turns: BetweenTurns | None = settings.between_turns
        self._call_ids: set[str] = {call["id"] for message in plain for call in _calls_of(message)}
        if settings.decisions is not None:
            self.messages = _with_results_in_order(plain)
            self.pending = _calls_without_result(plain)
            _check_decisions(settings.decisions, self.pending)

    async def next_turn(self) -> ChatStream:
        """Returns the stream of the next turn, which is not the first, or follows the calls of an earlier run.

        Raises:
            TurnLimitError: The limit of turns has been reached.
            ArgumentError: What ``between_turns`` returns cannot be sent.
            Exception: What ``between_turns`` raises.
        """
        if self.between_turns is not None:
            # An eager task begins inside the frames of the reader, and the traceback of an exception would keep these.
            await asyncio.sleep(0)
        if self.has_reached_limit:
            raise TurnLimitError(
                f"the model still called tools in turn {self.turns}, the last one that max_turns allows",
                messages=self.messages,
                usage=self.usage,
                turns=self.turns,
            )
        if self.between_turns is None:
            return self._open(self.messages, self._options)
        found = self.between_turns(copy.deepcopy(cast("list[dict[str, Any]]", self.messages)))
        messages = await found if inspect.isawaitable(found) else found
        try:
            return self._open(messages, self._options)
        except ArgumentError as error:
            error.path = error.path.replace("messages", "between_turns()", 1)  # not the argument of the run
            raise

    @property
    def has_reached_limit(self) -> bool:
        """Whether no other turn is left."""
        return self.turns >= self._limit

    def ask_again(self, feedback: str) -> None:
        """Adds a message to the model about its answer."""
        self.messages.append({"role": "user", "content": feedback})

    def identify(self, call: ToolCall) -> ToolCall:
        """Returns a call with an id that is unique in the conversation, generated if its own is missing or a duplicate.

        Servers may number the calls of each turn from 0.
        """
        call_id = call.id
        while not call_id or call_id in self._call_ids:
            call_id = uuid4().hex[:9]  # the chat templates of Mistral's models accept nine letters and digits only
        self._call_ids.add(call_id)
        return call if call_id == call.id else msgspec.structs.replace(call, id=call_id, type="function")

    def end_turn(self, reply: ChatCompletion, runner: ToolRunner) -> None:
        """Adds a finished turn."""
        self.turns += 1
        self.has_grown = True
        self.usage = add_usage(self.usage, reply.usage)
        self.messages = self.with_results(runner, reply)

    def deferred(self) -> tuple[ToolCall, ...]:
        """Returns the calls of the last turn without a result, with the arguments with which they are saved."""
        return _calls_without_result(self.messages)

    def end_pending(self, runner: ToolRunner) -> None:
        """Adds the results of the pending calls."""
        self.messages = self.with_results(runner)
        self.has_grown = True
        self.pending = ()

    def with_results(self, runner: ToolRunner, answer: ChatCompletion | None = None) -> Conversation:
        """Returns the conversation with the results of the tool calls of an answer; None: of the pending ones."""
        added: Conversation = [] if answer is None else [_with_calls(answer.message, runner.requested)]
        for call, content in runner.contents():
            added.append({"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": content})
        return _with_results_in_order([*self.messages, *added])


def deferred_calls(messages: Messages) -> tuple[ToolCall, ...]:
    """Returns the calls that a run with these messages needs ``decisions`` on: those at their end without a result.

    Args:
        messages: A conversation, such as the saved ``messages`` of a run.

    Raises:
        ValueError: An invalid message, or two of the calls have the same id.
    """
    plain = _plain(messages)
    check_values(plain, list[Message], "messages")
    return _calls_without_result(plain)


def _plain(messages: Messages) -> list[Any]:
    return [to_builtins(to_request_message(message)) for message in messages]


def _calls_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the tool calls of an answer; none for other messages, in which such a key is not validated."""
    return (message.get("tool_calls") or []) if message["role"] == "assistant" else []


def _last_answer(messages: list[Any]) -> tuple[list[dict[str, Any]], int]:
    """Returns the tool calls of an answer at the end, and the position of the tool messages after it."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "tool":
        end -= 1
    return (_calls_of(messages[end - 1]) if end else []), end


def _with_results_in_order(messages: list[Any]) -> Conversation:
    """Sorts the tool messages at the end by their calls: the chat templates of many models omit the ids."""
    calls, end = _last_answer(messages)
    places = {call["id"]: place for place, call in enumerate(calls)}
    results = sorted(messages[end:], key=lambda message: places.get(message["tool_call_id"], len(places)))
    return [*messages[:end], *results]


def _calls_without_result(messages: list[Any]) -> tuple[ToolCall, ...]:
    """Returns the calls of an answer at the end that no tool message after it answers."""
    calls, end = _last_answer(messages)
    count = Counter(call["id"] for call in calls)
    missing = count - Counter(message["tool_call_id"] for message in messages[end:])
    for call_id in missing:
        if count[call_id] > 1:
            raise ArgumentError(f"two calls of the last answer have the id {call_id!r}", "messages")
    return tuple(
        ToolCall(call["id"], function=FunctionCall(call["function"]["name"], call["function"]["arguments"]))
        for call in calls
        if call["id"] in missing
    )


def _check_decisions(decisions: Mapping[str, bool | str], pending: tuple[ToolCall, ...]) -> None:
    ids = [call.id for call in pending]
    for call_id in decisions:
        if call_id not in ids:
            waiting = ", ".join(map(repr, ids)) or "none"
            raise ArgumentError(
                f"no call {call_id!r} without a result is at the end of the conversation; there are: {waiting}",
                "decisions",
            )
    for call in pending:
        if decisions.get(call.id, "defer") == "defer":  # not a reason to refuse the call
            raise ArgumentError(f"there is none on the call {call.id!r} of {call.function.name!r}", "decisions")


def without_required_call(options: Mapping[str, object]) -> dict[str, object]:
    """Removes a ``tool_choice`` that requires a call, also from ``extra_body``.

    The required call has been made. If it were required again, the model would never answer.
    """
    kept = dict(options)
    if kept.get("tool_choice") not in (None, "auto", "none"):
        del kept["tool_choice"]
    if extra := extra_body_of(kept):
        kept["extra_body"] = without_required_call(extra)
    return kept


def _with_calls(answer: ChatMessage, calls: Sequence[ToolCall]) -> dict[str, object]:
    """Returns the message of an answer with its tool calls, as the run has identified them."""
    message = answer.as_input()
    if calls:
        message["tool_calls"] = [_as_input(call) for call in calls]
    return message


def _as_input(call: ToolCall) -> dict[str, object]:
    """Returns a call in its request form. Servers parse the arguments and reject anything but a JSON object."""
    arguments = arguments_json(call.function.arguments)
    if not is_json_object(arguments):
        arguments = json.dumps({"invalid_json": arguments})
    function = FunctionCall(call.function.name, arguments)
    return msgspec.structs.replace(call, type="function", function=function).as_input()
