"""For fastapi_app.py, and to be copied: FastAPI by itself lets a handler run on for a browser that has gone."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import HTTPException, Request

T = TypeVar("T")


async def while_connected(request: Request, call: Awaitable[T]) -> T:
    """Awaits the call, and cancels it when the browser goes away. (The request's body has been read by then.)"""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(call), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(499, "the browser has gone")  # nobody will read it
    finally:
        task.cancel()
        watch.cancel()
