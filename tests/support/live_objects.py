"""Counts the objects of calls that are alive, to show that none outlives its call."""

import gc
from collections import Counter
from typing import Final

OF_A_CALL: Final = frozenset(
    {
        *("AiohttpExchange", "Branch", "Call", "ChatCollector", "ChatStream", "EventReader", "EventSender", "Fanout"),
        *("ItemView", "Job", "MessageStream", "OpenStream", "ParsedChatStream", "RawView", "ReadClock"),
        *("ResponseStream", "Run", "SSEResponse", "SnapshotView", "StreamOpening", "TextCompletionStream", "TextView"),
        *("ToolAssistedStream", "ToolCallView", "ToolRunner", "TranscriptionStream", "WholeEvents"),
    }
)
"""The types whose objects must go with the last reference to a call, a stream, a run or a response.

By their names, so that counting loads no module. `test_package` checks that each is one of the library's.
"""


def live_objects() -> Counter[str]:
    """Returns how many objects of each of these types are alive."""
    return Counter(kind for each in gc.get_objects() if (kind := type(each).__name__) in OF_A_CALL)
