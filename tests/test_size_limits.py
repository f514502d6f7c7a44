"""Size limits of events, replies and error bodies, which count decompressed bytes and bound memory."""

import gzip
import random
import zlib

import pytest
from support.memory import MIB, assert_peak_memory_below
from support.sockets import (
    DONE,
    FAST_RETRY,
    assert_no_leaks,
    client_of,
    complete,
    completion,
    delta,
    open_stream,
    read,
    reply,
    serve_bytes,
    slots_in_use,
    with_timeout,
)
from support.steps import endless, split

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    InternalServerError,
    Limits,
    ResponseDecodeError,
    Timeouts,
)
from friendli_async._core.net.compression import inflater
from friendli_async.testing import FriendliServer, Step, body, chunk, comment, done, event, finish, raw, script, stall


async def test_endless_event_is_aborted_at_the_limit(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), raw(b"data: "), endless()))
    async with client_of(server.url, limits=Limits(event=MIB)) as client:
        stream = open_stream(client)
        with assert_peak_memory_below(6 * MIB), pytest.raises(ResponseDecodeError, match=r"Limits\.event") as caught:
            await with_timeout(read(stream))
        assert len(caught.value.excerpt) <= 1000
        assert stream.outcome == "failed"
        assert caught.value.partial is not None
        assert caught.value.partial.text == "a"
        await assert_no_leaks(client, server)


async def test_event_of_8_mib_is_read_completely(server: FriendliServer) -> None:
    server.enqueue(script(chunk("x" * 8 * MIB), finish(), done()))
    async with client_of(server.url) as client:
        assert len(await with_timeout(read(open_stream(client)))) == 8 * MIB


async def test_oversized_first_event_raises_without_a_retry(server: FriendliServer) -> None:
    server.enqueue(script(endless(b"data: x\n" * 1000)))
    async with client_of(server.url, limits=Limits(event=MIB), retry=FAST_RETRY) as client:
        with pytest.raises(ResponseDecodeError):
            await with_timeout(open_stream(client).__aenter__())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (b": " + b"x" * 65536 + b"\n\n", "text/event-stream"),
        *((blank * 3000, "application/json") for blank in (b"\n", b"\r\n", b"\xef\xbb\xbf")),
    ],
    ids=["comments", "LF", "CRLF", "BOM"],
)
async def test_endless_data_before_the_first_event_is_aborted_at_the_limit(
    server: FriendliServer, piece: bytes, kind: str
) -> None:
    server.enqueue(script(endless(piece), content_type=kind))
    async with client_of(server.url, limits=Limits(event=MIB), retry=FAST_RETRY) as client:
        with assert_peak_memory_below(6 * MIB), pytest.raises(ResponseDecodeError, match=r"Limits\.event"):
            await with_timeout(open_stream(client).__aenter__())
        await assert_no_leaks(client, server)
    assert len(server.requests) == 1


async def test_endless_reply_is_aborted_at_the_limit(server: FriendliServer) -> None:
    server.enqueue(script(endless(), content_type="application/json"))
    async with client_of(server.url, limits=Limits(reply=MIB)) as client:
        with assert_peak_memory_below(6 * MIB), pytest.raises(ResponseDecodeError, match=r"Limits\.reply"):
            await with_timeout(complete(client))
        await assert_no_leaks(client, server)


@pytest.mark.parametrize("streamed", [True, False])
async def test_endless_error_body_is_truncated_and_keeps_its_status(server: FriendliServer, streamed: bool) -> None:
    server.enqueue(script(endless(b"oops " * 1000), status=500, content_type="text/plain"))
    async with client_of(server.url, limits=Limits(error=4096)) as client:
        with pytest.raises(InternalServerError) as caught:
            await with_timeout(open_stream(client).result() if streamed else complete(client))
        assert caught.value.status_code == 500
        assert len(caught.value.body) <= 4096
        assert caught.value.body.startswith("oops")
        await assert_no_leaks(client, server)


async def test_stalled_error_body_does_not_hang_the_call(server: FriendliServer) -> None:
    server.enqueue(script(raw(b'{"error": {"message": "bad'), stall(), status=400))
    async with client_of(server.url, timeout=Timeouts(first_event=0.2)) as client:
        with pytest.raises((BadRequestError, APITimeoutError)):
            await with_timeout(complete(client))
        await assert_no_leaks(client, server)


def bomb(size: int) -> bytes:
    """Compresses many zeros into few bytes: after a full flush, every block compresses to the same bytes."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    first, next_ = (compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + next_ * (size // MIB - 1) + compressor.flush()


GZIP = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize("where", ["reply", "error", "stream"])
async def test_decompression_bomb_uses_bounded_memory(server: FriendliServer, where: str) -> None:
    compressed = bomb(256 * MIB)
    assert len(compressed) < MIB
    kind = "text/event-stream" if where == "stream" else "application/json"
    server.enqueue(body(compressed, status=400 if where == "error" else 200, headers=GZIP, content_type=kind))
    limits = Limits(reply=MIB, error=65536, event=MIB)
    async with client_of(server.url, limits=limits) as client:
        with assert_peak_memory_below(16 * MIB), pytest.raises((ResponseDecodeError, BadRequestError)) as caught:
            await with_timeout(open_stream(client).result() if where == "stream" else complete(client))
        assert type(caught.value) is (BadRequestError if where == "error" else ResponseDecodeError)
        await assert_no_leaks(client, server, connections=None)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "GZIP"])
async def test_compressed_reply_is_decoded(server: FriendliServer, encoding: str) -> None:
    data = zlib.compress(completion()) if encoding == "deflate" else gzip.compress(completion())
    server.enqueue(script(split(raw(data), 7), headers={"Content-Encoding": encoding}, content_type="application/json"))
    async with client_of(server.url) as client:
        assert (await with_timeout(complete(client))).text == "whole"


async def test_compressed_error_is_decoded(server: FriendliServer) -> None:
    compressed = gzip.compress(b'{"error": {"message": "squeezed", "code": "c"}}')
    server.enqueue(body(compressed, status=400, headers=GZIP, content_type="application/json"))
    async with client_of(server.url) as client:
        with pytest.raises(BadRequestError, match="squeezed"):
            await complete(client)


@pytest.mark.parametrize("size", [3, 100_000])
async def test_compressed_stream_is_decoded_although_not_requested(server: FriendliServer, size: int) -> None:
    compressed = gzip.compress(delta("Hel") + delta("lo") + delta(finish="stop") + DONE)
    server.enqueue(script(split(raw(compressed), size), headers=GZIP))
    async with client_of(server.url) as client:
        assert await read(open_stream(client)) == "Hello"
        assert server.requests[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip"])
async def test_unsupported_content_encoding_is_named_in_the_error(
    server: FriendliServer, encoding: str, streamed: bool
) -> None:
    kind = "text/event-stream" if streamed else "application/json"
    server.enqueue(body(b"\x1f\x03\x80", headers={"Content-Encoding": encoding}, content_type=kind))
    async with client_of(server.url) as client:
        with pytest.raises(ResponseDecodeError, match=encoding):
            await with_timeout(open_stream(client).result() if streamed else complete(client))
        assert slots_in_use(client) == 0


@pytest.mark.parametrize(
    "data", [b"\x1fnot gzip at all", gzip.compress(completion())[:-9], gzip.compress(b"x" * 99)[:12]]
)
async def test_corrupt_compressed_body_raises(server: FriendliServer, data: bytes) -> None:
    server.enqueue(body(data, headers=GZIP, content_type="application/json"))
    async with client_of(server.url) as client:
        with pytest.raises((ResponseDecodeError, APIConnectionError)):
            await with_timeout(complete(client))


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "gzip, gzip"])
@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize(
    "data", [b'{"error":{"message":"quota exceeded"}}', b"quota exceeded", "<p>quota exceeded \u2026".encode()]
)
async def test_error_message_in_a_body_mislabelled_as_gzip_is_read(
    server: FriendliServer, encoding: str, status: int, data: bytes
) -> None:
    server.enqueue(body(data, status=status, headers={"Content-Encoding": encoding}))
    is_page = data.startswith(b"<") and status == 200  # of another server, not an error of the API
    async with client_of(server.url) as client:
        with pytest.raises(ResponseDecodeError if is_page else APIStatusError, match="quota exceeded") as caught:
            await with_timeout(complete(client))
    assert getattr(caught.value, "status_code", 200) == status


async def test_error_message_in_a_mislabelled_body_respects_the_charset(server: FriendliServer) -> None:
    headers = {"Content-Encoding": "gzip"}
    message = "Kontingent \u00fcberschritten".encode("latin-1")
    server.enqueue(body(message, status=503, headers=headers, content_type="text/plain; charset=iso-8859-1"))
    async with client_of(server.url) as client:
        with pytest.raises(APIStatusError, match="Kontingent \u00fcberschritten"):
            await with_timeout(complete(client))


async def test_replies_mislabelled_as_gzip_are_read(server: FriendliServer) -> None:
    headers = {"Content-Encoding": "gzip"}
    stream = delta("whole", "stop") + DONE
    server.enqueue(body(completion(), headers=headers, content_type="application/json"))
    server.enqueue(body(stream, headers=headers, content_type="text/event-stream"))
    async with client_of(server.url) as client:
        assert (await with_timeout(complete(client))).text == "whole"
        assert (await with_timeout(open_stream(client).result())).text == "whole"


@pytest.mark.parametrize("cut", [1, 2, 3, 8, 20])
def test_compressed_data_is_decoded_wherever_it_is_split(cut: int) -> None:
    for level in range(1, 10):
        for plain in (b"a", completion(), b"data: x\n\n" * 9, bytes(range(256)), b"plain words " * 40):
            compressed = zlib.compress(plain, level)
            for encoding, data in (
                ("gzip", gzip.compress(plain, level)),
                ("deflate", compressed),
                ("deflate", compressed[2:-4]),
            ):
                inflate = inflater(encoding)
                assert inflate is not None
                assert inflate.step(data[:cut]) + inflate.step(data[cut:]) == plain
                assert inflate.finished


def inflated(encoding: str, *pieces: bytes) -> bytes:
    """Decompresses as a reader does, and checks that the data has ended."""
    inflate, plain = inflater(encoding), b""
    assert inflate is not None
    for piece in pieces:
        plain += inflate.step(piece)
        while not inflate.needs_input:
            plain += inflate.step(b"")
    assert inflate.finished
    return plain


@pytest.mark.parametrize("size", [1, MIB - 1, MIB, MIB + 1, MIB + 258, 3 * MIB])
def test_compressed_body_larger_than_a_step_is_decoded_completely(size: int) -> None:
    compressed = gzip.compress(bytes(size), 1)
    assert inflated("gzip", compressed) == inflated("gzip", compressed[:-9], compressed[-9:]) == bytes(size)
    assert inflated("deflate", zlib.compress(bytes(size), 1, wbits=-15)) == bytes(size)


def test_compressed_body_that_is_larger_than_what_may_yield_nothing_is_decoded() -> None:
    plain = random.Random(0).randbytes(2 * MIB)
    compressed = gzip.compress(plain, 1)
    pieces = [compressed[at : at + 65536] for at in range(0, len(compressed), 65536)]
    assert inflated("gzip", *pieces) == plain


def test_data_after_a_compressed_body_is_an_error_unless_it_is_another_member_or_zeros() -> None:
    member = gzip.compress(b"a")
    assert inflated("gzip", member + member + bytes(9), bytes(9) + member) == b"aaa"
    for encoding, whole in (("gzip", member), ("deflate", zlib.compress(b"a"))):
        for pieces in ((whole + b"rest",), (whole, b"rest")):
            with pytest.raises(ResponseDecodeError, match="unexpected data after its end"):
                inflated(encoding, *pieces)


def test_data_mislabelled_as_gzip_is_passed_through_wherever_it_is_split() -> None:
    assert inflated("gzip", b"quo", b"ta", b"\x1f\x8b\0") == b"quota\x1f\x8b\0"


@pytest.mark.parametrize("name", ["", "identity", "None", " NONE , identity ", "binary"])
def test_names_of_no_compression_also_apply_to_binary_data(name: str) -> None:
    assert inflater(name) is None


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_empty_reply_is_empty_whatever_its_content_encoding(server: FriendliServer, encoding: str) -> None:
    server.always(body(b"", headers={"Content-Encoding": encoding}, content_type="application/json"))
    async with client_of(server.url, retry=FAST_RETRY) as client:
        with pytest.raises(ResponseDecodeError):
            await with_timeout(complete(client))
    assert len(server.requests) == 1


def test_compressed_data_that_yields_no_output_is_limited() -> None:
    inflate = inflater("gzip")
    assert inflate is not None
    endless_comment = b"\x1f\x8b\x08\x10" + bytes(6) + b"x" * (1024 * 1024)
    assert inflate.step(endless_comment[:1000]) == b""
    with pytest.raises(ResponseDecodeError, match="bytes decompress to nothing"):
        inflate.step(endless_comment[1000:])


async def test_error_with_an_unsupported_content_encoding_keeps_its_status(server: FriendliServer) -> None:
    server.enqueue(body(b"\x8b\x03\x80", status=422, headers={"Content-Encoding": "br"}))
    async with client_of(server.url) as client:
        with pytest.raises(APIStatusError) as caught:
            await complete(client)
        assert caught.value.status_code == 422


async def test_truncated_plain_reply_raises_connection_error() -> None:
    whole = reply(completion())
    async with serve_bytes(whole[:-5]) as server, client_of(server.url) as client:
        with pytest.raises(APIConnectionError) as caught:
            await with_timeout(complete(client))
        assert caught.value.sent


STEPS: list[Step] = [chunk("a"), comment(), event({"choices": []})]


async def test_event_limit_does_not_apply_to_the_whole_stream(server: FriendliServer) -> None:
    server.enqueue(script(*STEPS * 500, finish(), done()))
    async with client_of(server.url, limits=Limits(event=1000)) as client:
        assert await read(open_stream(client)) == "a" * 500
