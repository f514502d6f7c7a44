"""Endpoints: dedicated deployments, their life cycle, and waking them."""

from friendli_async.endpoints import inputs, replies, resource
from friendli_async.endpoints.inputs import *
from friendli_async.endpoints.replies import *
from friendli_async.endpoints.resource import *

__all__: list[str] = []
__all__ += inputs.__all__
__all__ += replies.__all__
__all__ += resource.__all__
