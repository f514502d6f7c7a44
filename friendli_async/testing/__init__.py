"""An embedded server for tests that implements Friendli's API: real bytes, real connections, scripted faults.

    from friendli_async import AsyncFriendli
    from friendli_async.testing import FriendliServer, chunk, reset, script, status

    async with FriendliServer() as server, AsyncFriendli(server.token, server_url=server.url) as client:
        server.enqueue(status(503), script(chunk("Hel"), reset()))
        ...

Without a script it answers every operation of the API.

`friendli-async serve` runs it standalone. `pytest_plugins = ["friendli_async.testing.fixtures"]` provides
the fixtures `friendli_server` and `friendli_client`.
"""

from friendli_async.testing.chat import text, tool_calls
from friendli_async.testing.forms import FormPart
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.script import Answer, Script, body, json_body, pace, script, status
from friendli_async.testing.server import FriendliServer
from friendli_async.testing.steps import (
    Step,
    chunk,
    comment,
    cut,
    delay,
    done,
    event,
    finish,
    gate,
    head,
    raw,
    reset,
    stall,
    tool_status,
    usage,
)

__all__ = ["Answer", "FormPart", "FriendliServer", "ReceivedRequest", "Script", "Step"]
__all__ += ["body", "chunk", "comment", "cut", "delay", "done", "event", "finish", "gate", "head", "json_body"]
__all__ += ["pace", "raw", "reset", "script", "stall", "status", "text", "tool_calls", "tool_status", "usage"]
