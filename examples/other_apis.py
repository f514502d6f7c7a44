"""The messages, responses and completions APIs, and the tokenizer."""

import asyncio
import os

from friendli_async import AsyncFriendli
from friendli_async.responses import OutputTextDelta

MODEL = os.environ.get("FRIENDLI_MODEL", "meta-llama-3.1-8b-instruct")


async def main() -> None:
    async with AsyncFriendli() as client:
        api = client.serverless
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        async for text in api.messages.stream(model=MODEL, max_tokens=100, messages=messages).text():
            print(text, end="", flush=True)
        print()

        stream = api.responses.stream(model=MODEL, input="And why is it red at dusk?")
        async for event in stream:
            if isinstance(event, OutputTextDelta):
                print(event.delta, end="", flush=True)
        print(f"\n{(await stream.result()).usage}")

        completion = await api.completions.complete(model=MODEL, prompt="Once upon a time", max_tokens=20)
        print(completion.text)
        tokenized = await api.token.tokenize(model=MODEL, prompt=completion.text)
        print(len(tokenized.tokens), "tokens")


if __name__ == "__main__":
    asyncio.run(main())
