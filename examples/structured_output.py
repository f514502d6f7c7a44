"""Read an invoice out of the text of the arguments: its lines appear as they close, and the end is a checked value."""

import asyncio
import sys

import msgspec

from friendli_async import AsyncFriendli, OutputError

MODEL = "meta-llama-3.1-8b-instruct"


class Line(msgspec.Struct):
    product: str
    quantity: int
    price: float


class Invoice(msgspec.Struct):
    number: str
    lines: list[Line]
    total: float


async def main(text: str) -> None:
    ask = [{"role": "user", "content": f"Extract the invoice: {text}"}]
    async with AsyncFriendli() as client, client.serverless.chat.parse_stream(Invoice, model=MODEL, messages=ask) as s:
        try:
            async for line in s.items("lines", of=Line):
                print(f"{line.quantity} x {line.product} at {line.price:.2f}", flush=True)
            invoice = (await s.result()).value
            print(f"invoice {invoice.number}: {invoice.total:.2f}")
        except OutputError as error:
            print(f"no invoice: {error}")


asyncio.run(main(" ".join(sys.argv[1:])))
