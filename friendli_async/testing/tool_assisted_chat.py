"""The embedded server's tool-assisted chat: tool statuses, then an answer.

Each built-in tool of the request is used once, in order. `math:calculator` computes, and is used only if the last user
message contains an expression; the others have a canned result. A tool that fails ends the turn unless
`resume_generation` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from friendli_async._json import encode_json
from friendli_async.testing.calculator import CalculatorError, calculate, find_expression
from friendli_async.testing.chat import answer_chat, prompt_of, speak
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.script import Script
from friendli_async.testing.steps import Step, tool_status
from friendli_async.testing.turns import Turn, tokenize

_MAX_SHOWN: Final = 200


@dataclass(frozen=True)
class _ToolUse:
    """One use of a built-in tool.

    Args:
        name: The tool.
        parameters: Its parameters.
        result: Its result, or why it failed.
        summary: One sentence about it, for the text of the reply.
        message: Its progress message.
    """

    name: str
    parameters: Mapping[str, str]
    result: Mapping[str, object] | CalculatorError
    summary: str
    message: str | None = None


def answer_tool_assisted_chat(request: ReceivedRequest) -> Script:
    """Answer a validated tool-assisted chat request."""
    body = request.json_object
    prompt = prompt_of(body)
    uses = _tool_uses(body, prompt.text)
    if not uses:
        return answer_chat(request)
    steps = [
        step
        for number, use in enumerate(uses)
        for step in _statuses(use, f"call_{request.number:06d}_{number}", request.created)
    ]
    content = tokenize(" ".join(use.summary for use in uses))
    return speak(request, Turn(content, calls=prompt.calls(), prelude=steps))


def _tool_uses(body: Mapping[str, Any], text: str) -> list[_ToolUse]:
    uses: list[_ToolUse] = []
    if body.get("tool_choice") == "none":
        return uses
    for tool in body.get("tools") or ():
        use = _use_tool(tool["type"], text)
        if use is None:
            continue
        uses.append(use)
        if isinstance(use.result, CalculatorError) and not body.get("resume_generation"):
            break
    return uses


def _use_tool(name: str, text: str) -> _ToolUse | None:
    """Use a built-in tool on the last user message; None for a function, or if there is nothing to calculate."""
    if name == "math:calculator":
        return _calculate(name, text)
    if name == "function":
        return None
    result, message = {"output": "A canned result."}, f"Running {name}"
    return _ToolUse(name, {"query": text[:_MAX_SHOWN]}, result, f"The result of {name} is canned.", message)


def _calculate(name: str, text: str) -> _ToolUse | None:
    expression = find_expression(text)
    if expression is None:
        return None
    parameters = {"expression": expression}
    try:
        value = calculate(expression)
    except CalculatorError as error:
        return _ToolUse(name, parameters, error, f"I could not compute {expression}: {error}.")
    return _ToolUse(name, parameters, {"result": f"{expression}={value}"}, f"The result of {expression} is {value}.")


def _statuses(use: _ToolUse, call_id: str, timestamp: int) -> list[Step]:
    report = partial(tool_status, name=use.name, tool_call_id=call_id, parameters=use.parameters, timestamp=timestamp)
    steps: list[Step] = [report("STARTED", result="None")]
    if use.message is not None:
        steps.append(report("UPDATING", message=use.message))
    if isinstance(use.result, CalculatorError):
        steps.append(report("ERRORED", error={"type": use.result.kind, "msg": str(use.result)}))
    else:
        result = encode_json(encode_json(use.result).decode()).decode()  # encoded twice, as by the API
        steps.append(report("ENDED", result=result))
    return steps
