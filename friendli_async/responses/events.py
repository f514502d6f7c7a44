"""Events of a streamed response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from friendli_async.chat.replies import TokenLogprob
from friendli_async.replies import UnknownEvent, Value
from friendli_async.responses.replies import ContentPart, OutputItem, Response, WholeItem, as_item

__all__: list[str] = ["ResponseCompleted", "ResponseCreated", "ResponseInProgress", "ResponseIncomplete"]
__all__ += ["ContentPartAdded", "ContentPartDone", "OutputItemAdded", "OutputItemDone"]
__all__ += ["OutputTextDelta", "OutputTextDone", "ReasoningTextDelta", "ReasoningTextDone", "ResponseFailed"]
__all__ += ["FunctionCallArgumentsDelta", "FunctionCallArgumentsDone", "ResponseEvent"]


class _Event(Value, frozen=True, kw_only=True, tag_field="type"):
    """Base class of events."""

    sequence_number: int | None = None
    """Position of the event in its stream; not every engine sends it."""

    @property
    def type(self) -> str:
        """The event type, as on the wire."""
        return str(self.__struct_config__.tag)


class OfItem(_Event, frozen=True, kw_only=True):
    """An event of an output item. Some engines omit the id, the index or the content index."""

    item_id: str | None = None
    output_index: int | None = None


class OfPart(OfItem, frozen=True, kw_only=True):
    """An event of a part of an item's content."""

    content_index: int | None = None


class OfResponse(_Event, frozen=True, kw_only=True):
    response: Response


class ResponseCreated(OfResponse, frozen=True, kw_only=True, tag="response.created"):
    """The response has started: it has an id and no output yet."""


class ResponseInProgress(OfResponse, frozen=True, kw_only=True, tag="response.in_progress"):
    """The response is being generated."""


class ResponseCompleted(OfResponse, frozen=True, kw_only=True, tag="response.completed"):
    """The response is complete. This event contains all of it."""


class ResponseIncomplete(OfResponse, frozen=True, kw_only=True, tag="response.incomplete"):
    """The response was truncated; ``response.incomplete_details`` has the reason. This is not an error."""


class ResponseFailed(OfResponse, frozen=True, kw_only=True, tag="response.failed"):
    """The response failed. A stream does not yield this event: it raises the error that ``response.error`` names."""


class _OfWholeItem(_Event, frozen=True, kw_only=True):
    _json_types: ClassVar[Mapping[str, Any]] = {"item": OutputItem}

    item: WholeItem
    output_index: int | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "item", as_item(self.item))


class OutputItemAdded(_OfWholeItem, frozen=True, kw_only=True, tag="response.output_item.added"):
    """An output item starts."""


class OutputItemDone(_OfWholeItem, frozen=True, kw_only=True, tag="response.output_item.done"):
    """An output item is complete."""


class ContentPartAdded(OfPart, frozen=True, kw_only=True, tag="response.content_part.added"):
    """A part of an item's content starts."""

    part: ContentPart


class ContentPartDone(OfPart, frozen=True, kw_only=True, tag="response.content_part.done"):
    """A part of an item's content is complete."""

    part: ContentPart


class OutputTextDelta(OfPart, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """A chunk of a message's text."""

    delta: str
    logprobs: tuple[TokenLogprob, ...] | None = None


class OutputTextDone(OfPart, frozen=True, kw_only=True, tag="response.output_text.done"):
    """The complete text of a message's part."""

    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None


class ReasoningTextDelta(OfPart, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    """A chunk of reasoning."""

    delta: str


class ReasoningTextDone(OfPart, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    """The complete text of a reasoning part."""

    text: str


class FunctionCallArgumentsDelta(OfItem, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    """A chunk of a function call's arguments."""

    delta: str


class FunctionCallArgumentsDone(OfItem, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    """The complete arguments of a function call."""

    arguments: str
    name: str | None = None


Stages = ResponseCreated | ResponseInProgress | ResponseCompleted | ResponseIncomplete | ResponseFailed
_Items = OutputItemAdded | OutputItemDone | FunctionCallArgumentsDelta | FunctionCallArgumentsDone
_Parts = ContentPartAdded | ContentPartDone | OutputTextDelta | OutputTextDone | ReasoningTextDelta | ReasoningTextDone
ItemEvent = _Items | _Parts
KnownEvent = Stages | ItemEvent
ResponseEvent = KnownEvent | UnknownEvent
