"""Tools that run here: functions that a model may call, and what a run of ``chat.run`` tells of them.

@tool
async def weather(city: str, unit: Literal["C", "F"] = "C") -> Weather: ...

run = client.serverless.chat.run(model="...", messages=[...], tools=[weather])
async for event in run: ...             # ChatChunk | ToolStarted | ToolFinished | TurnEnded
result = await run.result()             # reply, messages, usage, turns

A tool is a ``LocalTool``: a function made into one by ``tool``, or anything else of that form.
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
