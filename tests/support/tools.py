"""Tools of the tests that observe runs."""

import asyncio

from friendli_async.tools import tool


@tool
async def weather(city: str = "Rome") -> str:
    """Weather of a city."""
    return f"sunny in {city}"


@tool
async def fail() -> str:
    """Fails."""
    raise LookupError("no such city")


@tool
async def never_ends() -> str:
    """Never ends."""
    await asyncio.Event().wait()
    return "never"
