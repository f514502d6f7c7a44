"""Extract an invoice, and print each line as it completes: `python examples/structured_output.py [TEXT]`."""

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
    messages = [{"role": "user", "content": f"Extract the invoice: {text}"}]
    async with AsyncFriendli() as client:
        stream = client.serverless.chat.parse_stream(Invoice, model=MODEL, messages=messages)
        try:
            async for line in stream.items("lines", of=Line):
                print(f"{line.quantity} x {line.product} at {line.price:.2f}", flush=True)
            invoice = (await stream.result()).value
            print(f"invoice {invoice.number}: {invoice.total:.2f}")
        except OutputError as error:
            print(f"no invoice: {error}")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "Two chairs at 40, invoice 2026-17"))
