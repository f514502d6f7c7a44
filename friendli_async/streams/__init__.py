"""Streams: iterate over events or text, read raw bytes, fan out to several branches, stop early."""

from friendli_async._core.events.stream import Outcome
from friendli_async.streams.stream import AssembledStream, EventStream
from friendli_async.streams.tee import Branch, BranchOverrunError, Slow
from friendli_async.streams.views import RawView, TextView

__all__ = ["AssembledStream", "Branch", "BranchOverrunError", "EventStream", "Outcome", "RawView", "Slow", "TextView"]
