"""One GET whose answer costs a bounded number of bytes and seconds, whatever the server sends.

HTTP libraries limit bodies and single headers. What comes before and between these has no end in them: interim answers
(`100 Continue`), extensions of chunks, trailers. So this asks in HTTP/1.0, where there are none, counts every byte, and
gives up at what an HTTP/1.0 answer does not have. No redirect is followed, no proxy asked, nothing unpacked.
"""

import asyncio
from urllib.parse import urlsplit

SECONDS = 5.0
LARGEST_HEAD, LARGEST_BODY = 16 << 10, 256 << 10
_PIECE = 32 << 10


class Unusable(Exception):
    """The answer is no success, or none that is read here."""


async def get(url: str) -> bytes:
    """Return the body of a 200. Raises Unusable, OSError when nobody listens, TimeoutError after SECONDS."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"GET {target} HTTP/1.0", f"Host: {host}:{parts.port or 80}", "Accept-Encoding: identity", "", ""]
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, limit=_PIECE)
        try:
            writer.write("\r\n".join(lines).encode("ascii"))
            return await _read(reader)
        finally:
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> bytes:
    data, end = b"", -1
    while end < 0:
        if len(data) > LARGEST_HEAD:
            raise Unusable(f"its head has more than {LARGEST_HEAD} bytes")
        if not (piece := await reader.read(_PIECE)):
            raise Unusable("it ends in its head")
        start = max(len(data) - 3, 0)
        data += piece
        end = data.find(b"\r\n\r\n", start)
    length = _length_of(data[:end])
    body = bytearray(data[end + 4 :])
    while len(body) < length and (piece := await reader.read(_PIECE)):
        body += piece
        if len(body) > LARGEST_BODY:
            raise Unusable(f"its body has more than {LARGEST_BODY} bytes")
    if length <= LARGEST_BODY and len(body) < length:
        raise Unusable("its body is cut")
    return bytes(body[:length])


def _length_of(head: bytes) -> int:
    """Return how many bytes the body has; more than is read where it goes on to the end of the connection."""
    status, *lines = head.split(b"\r\n")
    words = status.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or words[1] != b"200":
        raise Unusable(f"it begins with {status[:60]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if b"transfer-encoding" in headers or headers.get(b"content-encoding", b"identity") != b"identity":
        raise Unusable("it is encoded, which HTTP/1.0 and the request do not allow")
    length = headers.get(b"content-length")
    if length is None:
        return LARGEST_BODY + 1
    if not length.isdigit() or len(length) > 10 or int(length) > LARGEST_BODY:
        raise Unusable(f"its body has {length[:20]!r} bytes, of which {LARGEST_BODY} are read at most")
    return int(length)
