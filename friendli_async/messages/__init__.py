"""Messages: a model answers a conversation in the form of Anthropic's Messages API."""

from friendli_async.messages.collector import *  # noqa: F403
from friendli_async.messages.replies import *  # noqa: F403
from friendli_async.messages.resource import *  # noqa: F403
