"""Local tools: functions that a model may call, and the events of ``chat.run``, which calls them.

    @tool
    async def weather(city: str, unit: Literal["C", "F"] = "C") -> Weather: ...

    run = client.serverless.chat.run(model="...", messages=[...], tools=[weather])
    async for event in run: ...             # ChatChunk | ToolStarted | ToolFinished | TurnEnded
    result = await run.result()             # reply, messages, usage, turns

A tool is a ``LocalTool``: a function decorated with ``tool``, or any object that implements the protocol.
"""

from friendli_async.chat import run, tool_loop
from friendli_async.chat.run import *
from friendli_async.chat.tool_loop import *
from friendli_async.errors import ToolError, ToolProblem, TurnLimitError
from friendli_async.tools import function
from friendli_async.tools.function import *

__all__ = ["ToolError", "ToolProblem", "TurnLimitError"]
__all__ += function.__all__
__all__ += run.__all__
__all__ += tool_loop.__all__
