"""Images: input types, responses, and rejected arguments."""

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from support.sockets import FAST_RETRY

from friendli_async import AsyncFriendli, ResponseDecodeError
from friendli_async.images import GeneratedImage, ImageInput
from friendli_async.testing import FriendliServer, json_body, status

PNG: Final = b"\x89PNG\r\n\x1a\n" + bytes(100)
ENCODED: Final = base64.b64encode(PNG).decode()


async def iterate() -> AsyncIterator[bytes]:
    yield PNG[:50]
    yield PNG[50:]


@pytest.fixture
def client_options() -> dict[str, Any]:
    return {"retry": FAST_RETRY}


async def test_dedicated_returns_urls_or_images(server: FriendliServer, client: AsyncFriendli) -> None:
    images = client.dedicated.image
    reply = await images.generate(model="ep", prompt="a cat", seed=3)
    assert reply.data[0].seed == 3
    assert reply.data[0].response_format == "url"
    assert reply.data[0].url is not None
    assert reply.data[0].url.startswith(server.url)
    assert reply.meta.status == 200
    with pytest.raises(ResponseDecodeError, match="only its URL"):
        reply.data[0].content()
    reply = await images.edit(model="ep", image="https://host/cat.png", prompt="a dog", response_format="png")
    assert reply.data[0].content().startswith(b"\x89PNG")


async def test_container_returns_one_image(server: FriendliServer, client: AsyncFriendli) -> None:
    images = client.container.image
    generated = await images.generate(prompt="a cat", guidance_scale=1, num_inference_steps=4, response_format="jpeg")
    assert generated.content().startswith(b"\x89PNG")
    edited = await images.edit(image=PNG, prompt="a dog", model="route")
    assert edited.content().startswith(b"\x89PNG")
    assert server.requests[0].json == {
        "prompt": "a cat",
        "guidance_scale": 1,
        "num_inference_steps": 4,
        "response_format": "jpeg",
    }
    assert server.requests[1].json == {"image": {"image": ENCODED}, "prompt": "a dog", "model": "route"}


@pytest.mark.parametrize("kind", ["path", "bytes", "bytearray", "open file", "iterator"])
async def test_image_is_read_and_base64_encoded(
    server: FriendliServer, client: AsyncFriendli, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(PNG)
    sources: dict[str, ImageInput] = {
        "path": path,
        "bytes": PNG,
        "bytearray": bytearray(PNG),
        "open file": io.BytesIO(PNG),
        "iterator": iterate(),
    }
    await client.container.image.edit(image=sources[kind], prompt="p")
    assert server.requests[0].json_object["image"] == {"image": ENCODED}


async def test_several_images_are_sent_in_order(server: FriendliServer, client: AsyncFriendli, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    several: list[ImageInput] = [tmp_path / "cat.png", "https://host/a.png", {"image": "QUJD", "more": 1}, b"ABC"]
    expected = [{"image": ENCODED}, {"image": "https://host/a.png"}, {"image": "QUJD", "more": 1}, {"image": "QUJD"}]
    await client.dedicated.image.edit(model="m", image=several, prompt="p")
    await client.dedicated.image.generate(
        model="m", prompt="p", control_images=several, controlnet_weights=[0.5, 1, 0, 1]
    )
    assert server.requests[0].json_object["image"] == expected
    assert server.requests[1].json_object["control_images"] == expected
    assert server.requests[1].json_object["controlnet_weights"] == [0.5, 1, 0, 1]


async def test_single_control_image_is_sent_as_a_list(server: FriendliServer, client: AsyncFriendli) -> None:
    await client.dedicated.image.generate(model="m", prompt="p", control_images="https://host/a.png")
    assert server.requests[0].json_object["control_images"] == [{"image": "https://host/a.png"}]


async def test_none_is_sent_as_null(server: FriendliServer, client: AsyncFriendli) -> None:
    options: dict[str, Any] = {"seed": None, "control_images": None, "guidance_scale": None}
    await client.dedicated.image.generate(model="m", prompt="p", **options)
    assert server.requests[0].json == {"model": "m", "prompt": "p", **options}


async def test_iterator_is_buffered_so_the_call_can_be_retried(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(status(503), json_body({"image": "QUJD"}))
    reply = await client.container.image.edit(image=iterate(), prompt="p")
    assert reply.content() == b"ABC"
    assert len(reply.meta.attempts) == 2
    assert server.requests[0].json == server.requests[1].json


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": 5, "image": "x"}, ValueError, "prompt: Expected `str`"),
        ({"prompt": "p", "image": 5}, ValueError, "image: Expected bytes"),
        ({"prompt": "p", "image": None}, ValueError, "image: Expected bytes"),
        ({"prompt": "p", "image": ["x", 5]}, ValueError, r"image\[1\]: Expected bytes"),
        ({"prompt": "p", "image": {"url": "x"}}, ValueError, "image"),
        ({"prompt": "p", "image": {"image": 5}}, ValueError, r"image\.image"),
        ({"prompt": "p", "image": "x", "sed": 1}, TypeError, "did you mean 'seed'"),
        ({"prompt": "p", "image": "x", "control_images": []}, TypeError, "control_images"),
        ({"prompt": "p", "image": "x", "control_images": Path("missing.png")}, TypeError, "control_images"),
        ({"prompt": "p", "image": "x", "guidance_scale": None}, ValueError, "guidance_scale"),
    ],
    ids=range(10),
)
async def test_invalid_argument_is_rejected_before_sending(
    server: FriendliServer, client: AsyncFriendli, arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await client.container.image.edit(**arguments)
    assert server.connections == 0


@pytest.mark.parametrize("body", [{}, {"data": None}, {"data": {}}], ids=["nothing", "null", "object"])
async def test_response_without_images_is_a_decode_error(
    server: FriendliServer, client: AsyncFriendli, body: object
) -> None:
    server.enqueue(json_body(body), json_body(body))
    with pytest.raises(ResponseDecodeError):
        await client.dedicated.image.generate(model="m", prompt="p")
    with pytest.raises(ResponseDecodeError):
        await client.container.image.generate(prompt="p")


async def test_unknown_and_missing_response_fields_are_accepted(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(json_body({"data": [{"response_format": "webp", "b64_json": "QUJD", "new": 1}, {}], "new": 2}))
    reply = await client.dedicated.image.generate(model="m", prompt="p")
    assert reply.data[0].response_format == "webp"
    assert reply.data[0].content() == b"ABC"
    assert reply.data[1] == GeneratedImage()


def test_invalid_base64_is_a_decode_error() -> None:
    with pytest.raises(ResponseDecodeError, match="not valid base64"):
        GeneratedImage(b64_json="~~~").content()
