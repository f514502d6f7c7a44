"""Chat: a model answers a conversation, in one piece or as a stream of tokens; rendered templates; built-in tools."""

from friendli_async.chat.collector import *  # noqa: F403
from friendli_async.chat.replies import *  # noqa: F403
from friendli_async.chat.resource import *  # noqa: F403
