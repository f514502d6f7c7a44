"""What one can do with any open stream: iterate over its events, or its text; take its bytes; share it out; stop it."""

from friendli_async._core.events.stream import Outcome
from friendli_async.streams.raw import RawView
from friendli_async.streams.stream import AssembledStream, EventStream
from friendli_async.streams.tee import Branch, BranchOverrunError, Slow
from friendli_async.streams.views import TextView

__all__ = ["AssembledStream", "Branch", "BranchOverrunError", "EventStream", "Outcome", "RawView", "Slow", "TextView"]
