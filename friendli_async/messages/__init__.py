"""Messages: chat in the format of Anthropic's Messages API."""

from friendli_async.messages import inputs, replies, resource
from friendli_async.messages.inputs import *
from friendli_async.messages.replies import *
from friendli_async.messages.resource import *

__all__: list[str] = []
__all__ += inputs.__all__
__all__ += replies.__all__
__all__ += resource.__all__
