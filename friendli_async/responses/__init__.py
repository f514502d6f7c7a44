"""Responses: a model answers in the form of OpenAI's Responses API."""

from friendli_async.responses.collector import *  # noqa: F403
from friendli_async.responses.events import *  # noqa: F403
from friendli_async.responses.replies import *  # noqa: F403
from friendli_async.responses.resource import *  # noqa: F403
