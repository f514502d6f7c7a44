"""The events of a streamed response, and how they add up to the response."""

from __future__ import annotations

from friendli_async.replies import UnknownEvent, Value
from friendli_async.responses.replies import ContentPart, OutputItem, Response

__all__: list[str] = ["ResponseCompleted", "ResponseCreated", "ResponseInProgress", "ResponseIncomplete"]
__all__ += ["ContentPartAdded", "ContentPartDone", "OutputItemAdded", "OutputItemDone", "UnknownEvent"]
__all__ += ["OutputTextDelta", "OutputTextDone", "ReasoningTextDelta", "ReasoningTextDone", "ResponseFailed"]
__all__ += ["FunctionCallArgumentsDelta", "FunctionCallArgumentsDone", "ResponseEvent"]


class _Event(Value, frozen=True, kw_only=True, tag_field="type"):
    """What every event has."""

    sequence_number: int | None = None
    """Place of the event in its stream; not every engine counts."""

    @property
    def type(self) -> str:
        """The event's kind, as on the wire."""
        return str(self.__struct_config__.tag)


class OfItem(_Event, frozen=True, kw_only=True):
    """An event that adds to an output item. Not every engine says both, or where in the item's content."""

    item_id: str | None = None
    output_index: int | None = None


class OfPart(OfItem, frozen=True, kw_only=True):
    """An event that adds to a part of an item's content."""

    content_index: int | None = None


class _OfResponse(_Event, frozen=True, kw_only=True):
    response: Response


class ResponseCreated(_OfResponse, frozen=True, kw_only=True, tag="response.created"):
    """The response has begun: it has an id, and no output yet."""


class ResponseInProgress(_OfResponse, frozen=True, kw_only=True, tag="response.in_progress"):
    """The response is being made."""


class ResponseCompleted(_OfResponse, frozen=True, kw_only=True, tag="response.completed"):
    """A good end: the whole response."""


class ResponseIncomplete(_OfResponse, frozen=True, kw_only=True, tag="response.incomplete"):
    """A good end all the same: the response was cut short, ``response.incomplete_details`` says why."""


class ResponseFailed(_OfResponse, frozen=True, kw_only=True, tag="response.failed"):
    """The bad end. A stream raises it, as the error that ``response.error`` names, and does not hand it out."""


class OutputItemAdded(_Event, frozen=True, kw_only=True, tag="response.output_item.added"):
    """An output item begins."""

    item: OutputItem
    output_index: int | None = None


class OutputItemDone(_Event, frozen=True, kw_only=True, tag="response.output_item.done"):
    """An output item is whole."""

    item: OutputItem
    output_index: int | None = None


class ContentPartAdded(OfPart, frozen=True, kw_only=True, tag="response.content_part.added"):
    """A part of an item's content begins."""

    part: ContentPart


class ContentPartDone(OfPart, frozen=True, kw_only=True, tag="response.content_part.done"):
    """A part of an item's content is whole."""

    part: ContentPart


class OutputTextDelta(OfPart, frozen=True, kw_only=True, tag="response.output_text.delta"):
    """A piece of a message's text."""

    delta: str


class OutputTextDone(OfPart, frozen=True, kw_only=True, tag="response.output_text.done"):
    """A message's text, whole."""

    text: str


class ReasoningTextDelta(OfPart, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    """A piece of reasoning."""

    delta: str


class ReasoningTextDone(OfPart, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    """A text of reasoning, whole."""

    text: str


class FunctionCallArgumentsDelta(OfItem, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    """A piece of a function call's arguments."""

    delta: str


class FunctionCallArgumentsDone(OfItem, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    """A function call's arguments, whole."""

    arguments: str
    name: str | None = None


KnownEvent = (
    ResponseCreated
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | OutputItemAdded
    | OutputItemDone
    | ContentPartAdded
    | ContentPartDone
    | OutputTextDelta
    | OutputTextDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | FunctionCallArgumentsDelta
    | FunctionCallArgumentsDone
)
ResponseEvent = KnownEvent | UnknownEvent
