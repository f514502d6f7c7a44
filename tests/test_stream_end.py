"""How a stream ends: the decision, as a table, and what later reads do."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    FriendliError,
    ResponseDecodeError,
    StreamInterruptedError,
)
from friendli_async._core.events.stream import Outcome, StreamState, judge_end

LOST = APIConnectionError("the connection broke", sent=True)
TIMEOUT = APITimeoutError("no event within 5 s", limit="idle", seconds=5, sent=True)
CLOSED = StreamInterruptedError("the client was closed")
GARBAGE = ResponseDecodeError("the compressed reply is broken")
TRUNCATED = StreamInterruptedError("the stream ended before it was complete")
REJECTED = APIStatusError("overloaded", status_code=503)


def judged(
    *,
    ended: bool = False,
    failure: FriendliError | None = None,
    stopped: bool = False,
    broken: FriendliError | None = None,
    complete: bool = False,
) -> tuple[Outcome, FriendliError | None]:
    reader: Any = SimpleNamespace(has_ended=ended, failure=failure, stopped=stopped)
    collector: Any = SimpleNamespace(may_end=complete)
    return judge_end(reader, collector, broken)


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("broken", [None, LOST, TIMEOUT, CLOSED, GARBAGE])
def test_end_that_was_read_decides_whatever_happens_after_it(broken: FriendliError | None, complete: bool) -> None:
    after: dict[str, Any] = {"ended": True, "broken": broken, "complete": complete}
    assert judged(**after) == ("done", None)
    assert judged(stopped=True, **after) == ("stopped", None)
    assert judged(failure=TRUNCATED, **after) == ("truncated", TRUNCATED)
    assert judged(failure=REJECTED, **after) == ("failed", REJECTED)
    assert judged(failure=GARBAGE, **after) == ("failed", GARBAGE)


@pytest.mark.parametrize(("broken", "outcome"), [(TIMEOUT, "failed"), (CLOSED, "cancelled"), (GARBAGE, "failed")])
def test_incomplete_answer_ends_with_what_broke_it_off(broken: FriendliError, outcome: Outcome) -> None:
    assert judged(broken=broken) == (outcome, broken)


def test_lost_connection_truncates_an_incomplete_answer() -> None:
    outcome, error = judged(broken=LOST)
    assert outcome == "truncated"
    assert (type(error), str(error)) == (StreamInterruptedError, str(LOST))


@pytest.mark.parametrize("broken", [LOST, TIMEOUT, CLOSED])
def test_complete_answer_is_done_although_its_end_was_not_read(broken: FriendliError) -> None:
    assert judged(broken=broken, complete=True) == ("done", None)


def test_reply_that_cannot_be_decompressed_fails_even_after_a_complete_answer() -> None:
    assert judged(broken=GARBAGE, complete=True) == ("failed", GARBAGE)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_later_reads_raise_a_failure_always_and_another_error_unless_closed_on_purpose(
    outcome: Outcome, closed: bool
) -> None:
    assert not StreamState(outcome, None, closed).raises
    assert StreamState(outcome, CLOSED, closed).raises == (outcome in {"truncated", "failed"} or not closed)
