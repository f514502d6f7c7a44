"""LangChain: structured output, then a streamed answer: `python examples/langchain_chat.py [QUESTION]`."""

import asyncio
import sys

from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel

from friendli_async import AsyncFriendli
from friendli_async.integrations.langchain import ChatFriendli


class Place(BaseModel):
    """Location of a place."""

    city: str
    country: str


async def main(question: str) -> None:
    async with AsyncFriendli() as client:  # reads FRIENDLI_TOKEN
        model = ChatFriendli(model="meta-llama-3.1-8b-instruct", client=client, temperature=0)
        prompt = ChatPromptTemplate.from_messages([("system", "Answer in one sentence."), ("user", "{question}")])

        print(await (prompt | model.with_structured_output(Place)).ainvoke({"question": question}))
        async for chunk in (prompt | model).astream({"question": question}):
            print(chunk.text, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "Where is the Louvre?"))
