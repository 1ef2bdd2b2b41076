"""Make one GET request whose answer costs a bounded number of bytes and seconds, for any server.

HTTP libraries limit bodies and single headers, but not interim answers (`100 Continue`), extensions of chunks and
trailers. So this module counts every byte, and closes the connection after one answer. It follows no redirect, uses no
proxy and decompresses nothing. The request is HTTP/1.1: sidecars such as Envoy refuse older versions.
"""

import asyncio
import re
from collections.abc import Callable
from urllib.parse import urlsplit

SECONDS = 5.0
LARGEST_HEAD, LARGEST_BODY = 16 << 10, 256 << 10
_PIECE = 32 << 10


class Unusable(Exception):
    """The answer is not a success, or has a form that is not read here."""


async def get_bounded(url: str) -> bytes:
    """Return the body of an answer 200. Raises Unusable, OSError without a listener, TimeoutError after SECONDS."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}:{parts.port or 80}", "Accept-Encoding: identity"]
    lines += ["Connection: close", "", ""]
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, limit=_PIECE)
        try:
            writer.write("\r\n".join(lines).encode("ascii"))
            return await _read_answer(reader)
        finally:
            writer.transport.abort()


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    data, end = b"", -1
    while end < 0:
        if len(data) > LARGEST_HEAD:
            raise Unusable(f"its head has more than {LARGEST_HEAD} bytes")
        if not (piece := await reader.read(_PIECE)):
            raise Unusable("it ends in its head")
        start = max(len(data) - 3, 0)
        data += piece
        end = data.find(b"\r\n\r\n", start)
    headers = _read_headers(data[:end])
    body = bytearray(data[end + 4 :])
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        await _read_until(reader, body, lambda: body.endswith(b"\r\n0\r\n\r\n") or body == b"0\r\n\r\n")
        return _join_chunks(bytes(body))
    length = headers.get(b"content-length")
    if length is None:
        await _read_until(reader, body, lambda: False)
        return bytes(body)
    if not length.isdigit() or len(length) > 10 or int(length) > LARGEST_BODY:
        raise Unusable(f"its body has {length[:20]!r} bytes, of which {LARGEST_BODY} are read at most")
    await _read_until(reader, body, lambda: len(body) >= int(length))
    if len(body) < int(length):
        raise Unusable("its body is cut")
    return bytes(body[: int(length)])


async def _read_until(reader: asyncio.StreamReader, body: bytearray, is_whole: Callable[[], bool]) -> None:
    while not is_whole() and (piece := await reader.read(_PIECE)):
        body += piece
        if len(body) > LARGEST_BODY:
            raise Unusable(f"its body has more than {LARGEST_BODY} bytes")


def _join_chunks(body: bytes) -> bytes:
    """Return the chunks' content: RFC 9112, section 7.1, without trailers."""
    found, place = bytearray(), 0
    while True:
        end = body.find(b"\r\n", place)
        size = body[place:end].partition(b";")[0].strip() if end >= 0 else b""
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
            raise Unusable("its chunks are cut")
        if not (length := int(size, 16)):
            return bytes(found)
        found += body[end + 2 : end + 2 + length]
        place = end + 2 + length + 2


def _read_headers(head: bytes) -> dict[bytes, bytes]:
    """Return the headers of a 200. Raises Unusable for any other answer, interim ones included."""
    status, *lines = head.split(b"\r\n")
    text = status.split(None, 2)
    if len(text) < 2 or not text[0].startswith(b"HTTP/1.") or text[1] != b"200":
        raise Unusable(f"it begins with {status[:60]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise Unusable("it is packed, though the request asked for identity")
    if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
        raise Unusable("its transfer encoding is unknown")
    return headers
