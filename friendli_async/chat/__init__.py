"""Chat: completions and token streams, rendered chat templates, and tool-assisted chat."""

from typing import TYPE_CHECKING, Any

from friendli_async.chat import collector, inputs, render, replies, resource, tool_assisted
from friendli_async.chat.collector import *
from friendli_async.chat.inputs import *
from friendli_async.chat.render import *
from friendli_async.chat.replies import *
from friendli_async.chat.resource import *
from friendli_async.chat.tool_assisted import *
from friendli_async.replies import FunctionCall, ToolCall, Usage
from friendli_async.streams.views import TextView

if TYPE_CHECKING:
    from friendli_async.chat.structured import ItemView, ParsedChatStream, ParsedCompletion, SnapshotView, json_schema

__all__ = ["FunctionCall", "TextView", "ToolCall", "Usage"]  # whose homes are elsewhere, but users have them from here
__all__ += collector.__all__
__all__ += inputs.__all__
__all__ += render.__all__
__all__ += replies.__all__
__all__ += resource.__all__
__all__ += tool_assisted.__all__
__all__ += ["ItemView", "ParsedChatStream", "ParsedCompletion", "SnapshotView", "json_schema"]


if not TYPE_CHECKING:  # to type checkers it would make any name that does not exist an Any

    def __getattr__(name: str) -> Any:
        """Imports structured output on first access, to keep it off the import path of plain chat."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from friendli_async.chat import structured

        return getattr(structured, name)
