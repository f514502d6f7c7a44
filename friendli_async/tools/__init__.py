"""Local tools: functions that a model may call, and the events of ``chat.run``, which calls them.

    @tool
    async def weather(city: str, unit: Literal["C", "F"] = "C") -> Weather: ...

    run = client.serverless.chat.run(model="...", messages=[...], tools=[weather])
    async for event in run: ...             # ChatChunk | ToolStarted | ToolFinished | TurnEnded
    result = await run.result()             # reply, messages, usage, turns

A tool is a ``LocalTool``: a function decorated with ``tool``, or any object that implements the protocol.
"""

from friendli_async.chat.inputs import BeforeTool, BetweenTurns, Decision
from friendli_async.chat.run import ParsedRun, ParsedRunResult, Run, RunResult
from friendli_async.chat.tool_loop import RunEvent, ToolFinished, ToolStarted, TurnEnded, current_call
from friendli_async.chat.transcript import deferred_calls
from friendli_async.tools.function import FunctionTool, LocalTool, ToolDefinitionError, tool

# One list: pyright does not follow the `__all__` of modules of other packages.
__all__ = ["BeforeTool", "BetweenTurns", "Decision", "FunctionTool", "LocalTool", "ParsedRun", "ParsedRunResult"]
__all__ += ["Run", "RunEvent", "RunResult", "ToolDefinitionError", "ToolFinished", "ToolStarted", "TurnEnded"]
__all__ += ["current_call", "deferred_calls", "tool"]
