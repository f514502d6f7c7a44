"""Observers that record events."""

import gc

from friendli_async import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallEvent,
    CallHeld,
    CallStarted,
    Connected,
    FirstEvent,
    ObservedRunEvent,
    Observer,
    RunEnded,
    RunStarted,
    ToolCallEnded,
    ToolCallStarted,
)


class Recorder(Observer):
    """Records all events, in order."""

    def __init__(self) -> None:
        self.events: list[CallEvent] = []
        self.methods: list[str] = []

    def call_started(self, event: CallStarted) -> None:
        self._keep("call_started", event)

    def call_held(self, event: CallHeld) -> None:
        self._keep("call_held", event)

    def attempt_started(self, event: AttemptStarted) -> None:
        self._keep("attempt_started", event)

    def connected(self, event: Connected) -> None:
        self._keep("connected", event)

    def attempt_ended(self, event: AttemptEnded) -> None:
        self._keep("attempt_ended", event)

    def first_event(self, event: FirstEvent) -> None:
        self._keep("first_event", event)

    def call_ended(self, event: CallEnded) -> None:
        self._keep("call_ended", event)

    def _keep(self, method: str, event: CallEvent) -> None:
        self.methods.append(method)
        self.events.append(event)

    @property
    def reported(self) -> list[str]:
        """Summaries of the events: `attempt 1`, `connected`, `503 InternalServerError, wait 0`, `done`, ..."""
        return [_short(event) for event in self.events]

    @property
    def end(self) -> CallEnded:
        """The `call_ended` event, verified to be the only one and the last."""
        ends = [event for event in self.events if isinstance(event, CallEnded)]
        assert len(ends) == 1
        assert self.events[-1] is ends[0]
        return ends[0]


def _short(event: CallEvent) -> str:
    match event:
        case CallStarted():
            return "call"
        case CallHeld():
            return f"held {event.seconds:g} s, {event.status}"
        case AttemptStarted():
            return f"attempt {event.attempt}"
        case Connected():
            return "connected"
        case FirstEvent():
            return "first event"
        case AttemptEnded():
            wait = "" if event.wait is None else f", wait {event.wait:g}"
            return f"{event.status} {event.error or 'ok'}{wait}"
        case CallEnded():
            return event.outcome if event.error is None else f"{event.outcome} {event.error}"
        case _:
            raise AssertionError(event)


class RunRecorder(Observer):
    """Records the events of runs, and the start and end of calls, in order."""

    def __init__(self) -> None:
        self.events: list[CallEvent | ObservedRunEvent] = []

    def call_started(self, event: CallStarted) -> None:
        self._keep(event)

    def call_ended(self, event: CallEnded) -> None:
        self._keep(event)

    def run_started(self, event: RunStarted) -> None:
        self._keep(event)

    def tool_call_started(self, event: ToolCallStarted) -> None:
        self._keep(event)

    def tool_call_ended(self, event: ToolCallEnded) -> None:
        self._keep(event)

    def run_ended(self, event: RunEnded) -> None:
        self._keep(event)

    def _keep(self, event: CallEvent | ObservedRunEvent) -> None:
        self.events.append(event)

    @property
    def reported(self) -> list[str]:
        """Summaries of the events: `run`, `call`, `weather started`, `weather done`, `call done`, `run done`, ..."""
        return [_short_of_run(event) for event in self.events]

    @property
    def end(self) -> RunEnded:
        """The `run_ended` event, verified to be the only one and the last."""
        ends = [event for event in self.events if isinstance(event, RunEnded)]
        assert len(ends) == 1
        assert self.events[-1] is ends[0]
        return ends[0]


def _short_of_run(event: CallEvent | ObservedRunEvent) -> str:
    match event:
        case RunStarted():
            return "run"
        case RunEnded(outcome=outcome, error=error):
            return f"run {outcome}" if error is None else f"run {outcome} {error}"
        case ToolCallStarted(name=name):
            return f"{name} started"
        case ToolCallEnded(name=name, outcome=outcome, problem=problem, error=error):
            return " ".join(filter(None, [name, outcome, problem if problem != outcome else None, error]))
        case CallStarted():
            return "call"
        case CallEnded(outcome=outcome):
            return f"call {outcome}"
        case _:
            raise AssertionError(event)


class Collecting(Observer):
    """Makes the garbage collector run while it is told of the start of a call, and records when it is told of ends."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self._is_running = False

    def call_started(self, event: CallStarted) -> None:
        self._is_running = True
        gc.collect()
        self._is_running = False

    def call_ended(self, event: CallEnded) -> None:
        self._keep_end()

    def run_ended(self, event: RunEnded) -> None:
        self._keep_end()

    def _keep_end(self) -> None:
        self.ends.append("inside" if self._is_running else "outside")
