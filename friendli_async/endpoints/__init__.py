"""Endpoints: dedicated deployments, their life cycle, and waking them."""

from friendli_async.endpoints.inputs import *  # noqa: F403
from friendli_async.endpoints.replies import *  # noqa: F403
from friendli_async.endpoints.resource import *  # noqa: F403
from friendli_async.endpoints.waking import *  # noqa: F403
