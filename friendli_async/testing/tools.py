"""The built-in tools of tool-assisted chat. Calculator and statistics compute; the others fetch and run nothing."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from friendli_async.testing.calculator import CalculatorError, calculate, find_expression

__all__ = ["ToolUse", "use_tool"]

_MAX_SHOWN: Final = 200
_MAX_NUMBERS: Final = 100
_URL: Final = re.compile(r"https?://[^\s<>\"')]{1,200}")
_NUMBER: Final = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?")


@dataclass(frozen=True)
class ToolUse:
    """One use of a built-in tool.

    Args:
        name: The tool.
        parameters: Its parameters.
        result: Its result, or why it failed.
        summary: One sentence about it, for the text of the reply.
        messages: Its progress messages.
        files: The files it created.
    """

    name: str
    parameters: Mapping[str, str]
    result: Mapping[str, object] | CalculatorError
    summary: str
    messages: tuple[str, ...] = ()
    files: tuple[Mapping[str, str], ...] | None = None


def use_tool(tool: Mapping[str, Any], text: str) -> ToolUse | None:
    """Use a built-in tool, as in the request, on the last user message.

    Returns None for a function, and for the calculator if the message contains no expression.
    """
    name: str = tool["type"]
    if name == "file:text":
        return _read_files([str(file) for file in tool["files"]], text[:_MAX_SHOWN])
    use = _TOOLS.get(name)
    return None if use is None else use(name, text)


def _calculate(name: str, text: str) -> ToolUse | None:
    expression = find_expression(text)
    if expression is None:
        return None
    parameters = {"expression": expression}
    try:
        value = calculate(expression)
    except CalculatorError as error:
        return ToolUse(name, parameters, error, f"I could not compute {expression}: {error}.")
    return ToolUse(name, parameters, {"result": f"{expression}={value}"}, f"The result of {expression} is {value}.")


def _describe_numbers(name: str, text: str) -> ToolUse:
    numbers = [float(number) for number in _NUMBER.findall(text)[:_MAX_NUMBERS]]
    parameters = {"numbers": ", ".join(f"{number:g}" for number in numbers)}
    if not numbers:
        return ToolUse(name, parameters, {"count": 0}, "There are no numbers in it.")
    result = {
        "count": len(numbers),
        "mean": statistics.fmean(numbers),
        "median": statistics.median(numbers),
        "stdev": statistics.stdev(numbers) if len(numbers) > 1 else 0.0,
    }
    return ToolUse(name, parameters, result, f"The mean of the {len(numbers)} numbers is {result['mean']:g}.")


def _read_calendar(name: str, text: str) -> ToolUse:
    result = {"date": "2024-11-07", "weekday": "Thursday"}
    return ToolUse(name, {"query": text[:_MAX_SHOWN]}, result, "The calendar says Thursday, 7 November 2024.")


def _search(name: str, text: str) -> ToolUse:
    query = text[:_MAX_SHOWN]
    found = [
        {"title": f"Result {rank} for {query}", "url": f"https://example.com/{rank}", "snippet": "A canned result."}
        for rank in (1, 2)
    ]
    messages = (f"Searching for {query}", "Reading 2 pages")
    return ToolUse(name, {"query": query}, {"results": found}, "The search found 2 pages.", messages)


def _read_page(name: str, text: str) -> ToolUse:
    match = _URL.search(text)
    url = match.group().rstrip(".,:;!?") if match else "https://example.com/"
    result = {"url": url, "title": "Example Domain", "content": "A canned page."}
    return ToolUse(name, {"url": url}, result, f'The page {url} is titled "Example Domain".', (f"Opening {url}",))


def _run_code(name: str, text: str) -> ToolUse:
    parameters = {"code": f"print({text[:_MAX_SHOWN]!r})"}
    result = {"stdout": text[:_MAX_SHOWN] + "\n", "exit_code": 0}
    files = ({"name": "plot.png", "url": "https://example.com/files/plot.png"},)
    return ToolUse(name, parameters, result, "The program ended with exit code 0.", ("Running the program",), files)


def _read_files(names: Sequence[str], query: str) -> ToolUse:
    parameters = {"files": ", ".join(names), "query": query}
    passages = [{"file": name, "text": "A canned passage."} for name in names]
    summary = f"I found {len(passages)} passages in the files."
    return ToolUse("file:text", parameters, {"passages": passages}, summary, ("Reading the files",))


_TOOLS: Final[Mapping[str, Callable[[str, str], ToolUse | None]]] = {
    "math:calculator": _calculate,
    "math:statistics": _describe_numbers,
    "math:calendar": _read_calendar,
    "web:search": _search,
    "web:url": _read_page,
    "code:python-interpreter": _run_code,
    "linkup:search": _search,
}
