"""An async-first streaming client for Friendli's inference API.

async with AsyncFriendli() as client:                      # FRIENDLI_TOKEN, FRIENDLI_TEAM
    reply = await client.serverless.chat.complete(model="...", messages=[{"role": "user", "content": "Hi"}])
    async for chunk in client.serverless.chat.stream(model="...", messages=[...]):
        print(chunk.text, end="")
"""

from friendli_async._core.observers import (
    AttemptEnded,
    AttemptStarted,
    CallContent,
    CallEnded,
    CallEvent,
    CallHeld,
    CallStarted,
    Connected,
    FirstEvent,
    ObservedRunEvent,
    Observer,
    RunEnded,
    RunStarted,
    ToolCallContent,
    ToolCallEnded,
    ToolCallEvent,
    ToolCallStarted,
)
from friendli_async._core.pages import Pages
from friendli_async._version import __version__
from friendli_async.chat.collector import ChatStream
from friendli_async.chat.replies import ChatChunk, ChatCompletion, ChatMessage
from friendli_async.chat.tool_assisted import ToolAssistedStream, ToolStatus
from friendli_async.client import AsyncFriendli
from friendli_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ArgumentError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    FriendliError,
    InternalServerError,
    NotFoundError,
    OutputCutOffError,
    OutputError,
    OutputInvalidError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    SDKError,
    StreamInterruptedError,
    ToolError,
    TurnLimitError,
    UnknownArgumentError,
    UnprocessableEntityError,
    UsageLimitError,
)
from friendli_async.options import Limits, Pacing, RetryPolicy, Timeouts
from friendli_async.rate_limits import RateLimit
from friendli_async.replies import Attempt, Gauges, LoopGauges, Meta, Partial, Timing, ToolCall, UnknownEvent, Usage
from friendli_async.streams.stream import EventStream
from friendli_async.streams.tee import BranchOverrunError
from friendli_async.usage_limit import UsageLimit

__all__ = ["APIConnectionError", "APIStatusError", "APITimeoutError", "ArgumentError", "AsyncFriendli", "Attempt"]
__all__ += ["AttemptEnded", "AttemptStarted", "AuthenticationError", "BadRequestError", "BranchOverrunError"]
__all__ += ["CallContent", "CallEnded", "CallEvent", "CallHeld", "CallStarted", "ChatChunk", "ChatCompletion"]
__all__ += ["ChatMessage", "ChatStream", "ConfigurationError", "ConflictError", "Connected", "EventStream"]
__all__ += ["FirstEvent", "FriendliError", "Gauges", "InternalServerError", "Limits", "LoopGauges", "Meta"]
__all__ += ["NotFoundError", "ObservedRunEvent", "Observer", "OutputCutOffError", "OutputError"]
__all__ += ["OutputInvalidError", "Pacing", "Pages", "Partial", "PermissionDeniedError", "RateLimit", "RateLimitError"]
__all__ += ["ResponseDecodeError", "RetryPolicy", "RunEnded", "RunStarted", "SDKError", "StreamInterruptedError"]
__all__ += ["Timeouts", "Timing", "ToolAssistedStream", "ToolCall", "ToolCallContent", "ToolCallEnded"]
__all__ += ["ToolCallEvent", "ToolCallStarted", "ToolError", "ToolStatus", "TurnLimitError", "UnknownArgumentError"]
__all__ += ["UnknownEvent", "UnprocessableEntityError", "Usage", "UsageLimit", "UsageLimitError", "__version__"]
