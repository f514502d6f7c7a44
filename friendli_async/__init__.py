"""An async-first streaming client for Friendli's inference API.

async with AsyncFriendli() as client:                      # FRIENDLI_TOKEN, FRIENDLI_TEAM
    reply = await client.serverless.chat.complete(model="...", messages=[{"role": "user", "content": "Hi"}])
    async for chunk in client.serverless.chat.stream(model="...", messages=[...]):
        print(chunk.text, end="")
"""

from friendli_async._core.events.stream import EventStream
from friendli_async._core.observers import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallEvent,
    CallStarted,
    Connected,
    FirstEvent,
    Observer,
)
from friendli_async._core.pages import Pages
from friendli_async._version import __version__
from friendli_async.chat.replies import ChatChunk, ChatCompletion, ChatMessage
from friendli_async.chat.resource import ChatStream
from friendli_async.chat.tool_assisted import ToolAssistedStream, ToolStatus
from friendli_async.client import AsyncFriendli
from friendli_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    FriendliError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    SDKError,
    StreamInterruptedError,
    UnprocessableEntityError,
)
from friendli_async.options import Limits, RetryPolicy, Timeouts
from friendli_async.replies import Attempt, Gauges, LoopGauges, Meta, Partial, Timing, ToolCall, UnknownEvent, Usage

__all__ = ["APIConnectionError", "APIStatusError", "APITimeoutError", "AsyncFriendli", "Attempt", "AttemptEnded"]
__all__ += ["AttemptStarted", "AuthenticationError", "BadRequestError", "CallEnded", "CallEvent", "CallStarted"]
__all__ += ["ChatChunk", "ChatCompletion", "ChatMessage", "ChatStream", "ConfigurationError", "ConflictError"]
__all__ += ["Connected", "EventStream", "FirstEvent", "FriendliError", "Gauges", "InternalServerError", "Limits"]
__all__ += ["LoopGauges", "Meta", "NotFoundError", "Observer", "Pages", "Partial", "PermissionDeniedError"]
__all__ += ["RateLimitError", "ResponseDecodeError", "RetryPolicy", "SDKError", "StreamInterruptedError", "Timeouts"]
__all__ += ["Timing", "ToolAssistedStream", "ToolCall", "ToolStatus", "UnknownEvent", "UnprocessableEntityError"]
__all__ += ["Usage", "__version__"]
