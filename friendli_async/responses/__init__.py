"""Responses: generation in the format of OpenAI's Responses API."""

from typing import TYPE_CHECKING, Any

from friendli_async.responses import collector, events, inputs, replies, resource
from friendli_async.responses.collector import *
from friendli_async.responses.events import *
from friendli_async.responses.inputs import *
from friendli_async.responses.replies import *
from friendli_async.responses.resource import *

if TYPE_CHECKING:
    from friendli_async.responses.structured import ParsedResponse, ParsedResponseStream

__all__: list[str] = ["ParsedResponse", "ParsedResponseStream"]
__all__ += collector.__all__
__all__ += events.__all__
__all__ += inputs.__all__
__all__ += replies.__all__
__all__ += resource.__all__


if not TYPE_CHECKING:  # to type checkers it would make any name that does not exist an Any

    def __getattr__(name: str) -> Any:
        """Imports structured output on first use, to keep the import of this package fast."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from friendli_async.responses import structured

        return getattr(structured, name)
