"""Chat: a model answers a conversation, in one piece or as a stream of tokens; rendered templates; built-in tools."""

from friendli_async._core.events.views import TextView
from friendli_async.chat import collector, inputs, render, replies, resource, tool_assisted
from friendli_async.chat.collector import *
from friendli_async.chat.inputs import *
from friendli_async.chat.render import *
from friendli_async.chat.replies import *
from friendli_async.chat.resource import *
from friendli_async.chat.tool_assisted import *
from friendli_async.replies import FunctionCall, ToolCall, Usage

__all__ = ["FunctionCall", "TextView", "ToolCall", "Usage"]
__all__ += collector.__all__
__all__ += inputs.__all__
__all__ += render.__all__
__all__ += replies.__all__
__all__ += resource.__all__
__all__ += tool_assisted.__all__
