"""The arguments of a run: they are validated here, before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec

from friendli_async._core.body.arguments import check_keywords, check_values
from friendli_async._core.body.json_values import is_list, to_builtins
from friendli_async._lazy import LazyModule
from friendli_async.chat.collector import ChatCollector, ChatStream
from friendli_async.chat.inputs import (
    COMPLETE,
    PARAMETERS,
    LocalTool,
    Messages,
    ParseRunOptions,
    RunOptions,
    check_timeout,
    extra_body_of,
    is_local_tool,
    requested_choices,
    stream_fields,
    to_request_tool,
)
from friendli_async.chat.run import ParsedRun, Run
from friendli_async.chat.tool_loop import RunSettings, ToolRunner
from friendli_async.chat.transcript import Transcript, without_required_call
from friendli_async.errors import ArgumentError
from friendli_async.options import is_number

if TYPE_CHECKING:
    from friendli_async._core import engine as engine_module
    from friendli_async.chat.answer_tool import AnswerTool
else:
    engine_module = LazyModule("friendli_async._core.engine")

_SET_EACH_TURN: Final = frozenset({"messages", "tools"})
_NOT_SENT: Final = frozenset({*RunSettings.__struct_fields__, "strict"})


def create_run(
    engine: engine_module.Engine,
    method: Literal["run", "parse_run"],
    required: Mapping[str, Any],
    tools: Sequence[LocalTool],
    options: Mapping[str, object],
    kind: Any = None,
) -> Run:
    """Validates the arguments and creates a run. Nothing is sent.

    Args:
        engine: Makes its calls.
        method: The method that creates the run: with "run" it ends with text, with "parse_run" with a value.
        required: The parameters of each turn, with the conversation so far.
        tools: The tools that the model may call.
        options: The given ``RunOptions``, or ``ParseRunOptions``.
        kind: The type of the value.

    Raises:
        TypeError: An unknown keyword, or a tool that cannot be run.
        ValueError: An invalid value, or two tools with the same name.
    """
    known = RunOptions if method == "run" else ParseRunOptions
    check_keywords(options, known.__annotations__, method, ("model", "messages", "tools"))
    settings = _settings_of(options)
    if requested_choices(options) != 1:
        raise ArgumentError("a run supports only one choice per turn", "n")
    for name in _SET_EACH_TURN & extra_body_of(options).keys():
        raise ArgumentError("cannot be set here: each turn of the run sends its own", f"extra_body.{name}")
    by_name = _index_by_name(tools)
    answer = _add_answer(by_name, kind, options) if method == "parse_run" else None
    forced = {} if answer is None else {"tool_choice": "required"}  # in each turn: the answer is a call, too
    sent = {**forced, **{name: value for name, value in options.items() if name not in _NOT_SENT}}
    sent["tools"] = [to_request_tool(tool) for tool in by_name.values()]
    reporter = engine.run_reporter(COMPLETE, required)
    runner = ToolRunner(by_name, settings, reporter, answer)

    def open_turn(messages: Messages, options: Mapping[str, object]) -> ChatStream:
        arguments = PARAMETERS.encode("run", {**required, "messages": messages}, options, stream_fields(options))
        return ChatStream(engine.opening(COMPLETE, arguments, ChatCollector, reporter))

    first = open_turn(required["messages"], sent)  # validates them
    later = {**forced, **without_required_call(sent)}
    transcript = Transcript(open_turn, required["messages"], later, settings)
    if settings.decisions is not None:
        first = open_turn(transcript.messages, sent)  # the results may have been in another order
    run = Run if answer is None else ParsedRun[Any]
    return run(first, transcript, runner, reporter, engine.runtime.begin_work, answer)


def _settings_of(options: Mapping[str, object]) -> RunSettings:
    """Returns the settings among the options of a run; raises ValueError if one is invalid."""
    given: dict[str, Any] = {name: options[name] for name in RunSettings.__struct_fields__ if name in options}
    if given.get("decisions") is not None:
        given["decisions"] = to_builtins(given["decisions"])  # also bools of numpy
    check_values(given, RunSettings)
    settings = RunSettings(**given)
    if settings.tool_timeout is not None and not is_number(settings.tool_timeout):  # msgspec accepts a Decimal
        raise ArgumentError(f"Expected `float | null`, got {settings.tool_timeout!r}", "tool_timeout")
    for name in ("before_tool", "between_turns"):
        function = getattr(settings, name)
        if function is not None and not callable(function):
            raise ArgumentError(f"Expected a function, got {type(function).__name__}", name)
    return settings


def _add_answer(by_name: dict[str, LocalTool], kind: Any, options: Mapping[str, object]) -> AnswerTool:
    """Adds the tool by which the model gives a value."""
    from friendli_async.chat.answer_tool import AnswerTool  # not needed by a run that ends with text

    if "response_format" in extra_body_of(options):
        raise TypeError("parse_run() does not accept 'response_format': it is derived from the type")
    answer = AnswerTool(kind, cast("bool", options.get("strict", True)))
    if answer.name in by_name:
        raise ArgumentError(
            f"duplicate tool name {answer.name!r}: the answer is given by a tool of this name; rename the other",
            "tools",
        )
    by_name[answer.name] = answer
    return answer


def _index_by_name(tools: Sequence[LocalTool]) -> dict[str, LocalTool]:
    if not is_list(tools):
        raise ArgumentError(f"Expected a list of tools, got `{type(tools).__name__}`", "tools")
    found: dict[str, LocalTool] = {}
    for number, tool in enumerate(tools):
        if not is_local_tool(tool):
            kind = type(tool).__name__
            raise TypeError(
                f"tools[{number}]: a {kind} is not a runnable tool: make one from a function with "
                "friendli_async.tools.tool. For tools that you run yourself, use chat.stream"
            )
        if tool.name in found:
            raise ArgumentError(
                f"duplicate tool name {tool.name!r}; rename one with tool(fn, name=...)", f"tools[{number}]"
            )
        found[tool.name] = tool
        check_timeout(getattr(tool, "timeout", msgspec.UNSET), f"tools[{number}].timeout")
    return found
