"""An OpenTelemetry span per call, printed to the terminal, and a custom observer (`pip install opentelemetry-sdk`)."""

import asyncio
import os

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from friendli_async import AsyncFriendli, CallEnded, Observer
from friendli_async.integrations.opentelemetry import Telemetry

MODEL = os.environ.get("FRIENDLI_MODEL", "meta-llama-3.1-8b-instruct")


class LatencyPrinter(Observer):
    def call_ended(self, event: CallEnded) -> None:
        first = event.timing.first_event or 0.0
        print(f"{event.operation} of {event.model}: {event.outcome}, first event after {first * 1000:.0f} ms")


async def main() -> None:
    provider = TracerProvider()  # a service would export its spans to a collector
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    telemetry = Telemetry(tracer_provider=provider)
    async with AsyncFriendli(observers=[telemetry, LatencyPrinter()]) as client:
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        reply = await client.serverless.chat.stream(model=MODEL, messages=messages).result()
        print(reply.text)
    provider.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
