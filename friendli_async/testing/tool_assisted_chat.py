"""The embedded server's tool-assisted chat: tool statuses between tokens.

Each built-in tool of the request is used once, in order, after a token of text; `math:calculator` is used only if the
last user message contains an expression. A tool that fails ends the turn unless `resume_generation` is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from friendli_async._json import encode_json
from friendli_async.testing.calculator import CalculatorError
from friendli_async.testing.chat import answer_chat, prompt_of, speak
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.script import Script
from friendli_async.testing.steps import Step, tool_status
from friendli_async.testing.tools import ToolUse, use_tool
from friendli_async.testing.turns import Turn, tokenize

__all__ = ["answer_tool_assisted_chat"]


def answer_tool_assisted_chat(request: ReceivedRequest) -> Script:
    """Answer a validated tool-assisted chat request."""
    body = request.json_object
    prompt = prompt_of(body)
    uses = _tool_uses(body, prompt.text)
    if not uses:
        return answer_chat(request)
    content: list[str] = []
    interludes: dict[int, Sequence[Step]] = {}
    for number, use in enumerate(uses):
        content += tokenize(f"Using {use.name}.\n")
        interludes[len(content)] = _statuses(use, f"call_{request.number:06d}_{number}", request.created)
    for use in uses:
        content += tokenize(f"{use.summary} ")
    content[-1] = content[-1].rstrip()
    return speak(request, Turn(tuple(content), calls=prompt.calls(), interludes=interludes))


def _tool_uses(body: Mapping[str, Any], text: str) -> list[ToolUse]:
    uses: list[ToolUse] = []
    if body.get("tool_choice") == "none":
        return uses
    for tool in body.get("tools") or ():
        use = use_tool(tool, text)
        if use is None:
            continue
        uses.append(use)
        if isinstance(use.result, CalculatorError) and not body.get("resume_generation"):
            break
    return uses


def _statuses(use: ToolUse, call_id: str, timestamp: int) -> list[Step]:
    report = partial(tool_status, name=use.name, tool_call_id=call_id, parameters=use.parameters, timestamp=timestamp)
    started = report("STARTED", result="None")
    updates = [report("UPDATING", message=message) for message in use.messages]
    if isinstance(use.result, CalculatorError):
        return [started, *updates, report("ERRORED", error={"type": use.result.kind, "msg": str(use.result)})]
    result = encode_json(encode_json(use.result).decode()).decode()  # encoded twice, as by the API
    return [started, *updates, report("ENDED", result=result, files=use.files)]
