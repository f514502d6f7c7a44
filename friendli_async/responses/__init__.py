"""Responses: a model answers in the form of OpenAI's Responses API."""

from friendli_async.responses import collector, events, inputs, replies, resource
from friendli_async.responses.collector import *
from friendli_async.responses.events import *
from friendli_async.responses.inputs import *
from friendli_async.responses.replies import *
from friendli_async.responses.resource import *

__all__: list[str] = []
__all__ += collector.__all__
__all__ += events.__all__
__all__ += inputs.__all__
__all__ += replies.__all__
__all__ += resource.__all__
