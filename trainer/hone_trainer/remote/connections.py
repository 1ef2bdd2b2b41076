"""HTTP connections of all stores, and what their answers and failures mean.

They use the proxies of the environment. No message contains a query, which in a redirect may be a signature.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import certifi
import urllib3
from hone_api.reasons import STORE_UNAUTHORIZED, STORE_UNREACHABLE, HoneError
from urllib3.exceptions import HTTPError, LocationValueError, ProxyError, SSLError

from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import ChangedError, RemoteObject, TransientError
from hone_trainer.runtime.proxies import PROXY_AUTHENTICATION_REQUIRED, Connections

CONNECTIONS = 8
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
LONGEST_WAIT_SECONDS = 60.0
# Blocks of 1 MiB cause nine times as many page faults.
BLOCK_BYTES = 256 * 1024
_PORTS = {"http": 80, "https": 443}
_TOTAL = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")
Pool = TypeVar("Pool", bound=Connections)


def make_pool(location: Location, kind: type[Pool]) -> Pool:
    """Return connections that verify servers with the source's own certificates, or the public ones."""
    return kind(
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        maxsize=CONNECTIONS,
        retries=False,
        cert_reqs="CERT_REQUIRED",
        ca_certs=str(location.ca_file or certifi.where()),
    )


@contextmanager
def translate_failures(location: Location) -> Iterator[None]:
    """Within the context, turn failures of connections into TransientError or HoneError StoreUnreachable."""
    certificates = location.name_field("caBundle")
    try:
        yield
    except LocationValueError:  # its text, also in a traceback, is the full URL
        raise TransientError("the server redirects to an address that is no URL") from None
    except HTTPError as error:
        text = " ".join(str(error).split())
        if "CERTIFICATE_VERIFY" in text:
            raise HoneError(
                STORE_UNREACHABLE,
                f"{location.where}, and TLS failed: {text}",
                remedy=f"Give the certificate of its authority in {certificates}. If it has expired, or "
                "is for another host name, replace it on the server.",
            ) from error
        if isinstance(error, SSLError) or isinstance(error.__cause__, SSLError):
            raise HoneError(
                STORE_UNREACHABLE,
                f"{location.where}, and TLS failed: {text}",
                remedy="Check that the server speaks TLS at this host and port; where it does not, an S3 server has an "
                f"endpoint with http://. Check the certificates in {certificates} if it is set.",
            ) from error
        if isinstance(error, ProxyError):
            raise _explain_proxy(location, text) from error
        raise TransientError(text) from error
    except OSError as error:
        if error.filename:  # of a file, such as the certificates
            raise
        raise TransientError(" ".join(str(error).split())) from error


def _explain_proxy(location: Location, text: str) -> Exception:
    """Return the failure that an error of the environment's proxy means."""
    if str(PROXY_AUTHENTICATION_REQUIRED) not in text:
        return TransientError(f"the proxy of HTTPS_PROXY or HTTP_PROXY: {text}")
    return HoneError(
        STORE_UNREACHABLE,
        f"{location.where}, and the proxy of the environment refuses access: {text}",
        remedy="Give its user and password in HTTPS_PROXY or HTTP_PROXY, as http://USER:PASSWORD@HOST:PORT; take the "
        "variable from a Secret. Or put the server's host into NO_PROXY.",
    )


def is_same_origin(one: str, other: str) -> bool:
    """Return whether two URLs have the same scheme, host and port, in any spelling."""
    try:
        return _find_origin(one) == _find_origin(other)
    except ValueError:
        return False


def resolve_address(url: str, address: str) -> str | None:
    """Return the URL that an answer to a request for `url` names; None for one that must not be followed.

    That is one that is no URL, and one that would leave TLS: all that a server names is judged by this rule.
    """
    try:
        target = urljoin(url, address)
        scheme, host, _ = _find_origin(target)
    except ValueError:
        return None
    return target if host and scheme in ("https", urlsplit(url).scheme.lower()) else None


def _find_origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").rstrip("."), parts.port or _PORTS.get(scheme)


def is_transient(status: int) -> bool:
    """Return whether a request that was answered with a status may succeed later."""
    return status in (408, 425, 429) or status >= 500


def read_wait(headers: "urllib3.HTTPHeaderDict") -> float:
    """Return the seconds that a server asks to wait for."""
    text = headers.get("Retry-After", "")
    return min(float(text), LONGEST_WAIT_SECONDS) if text.isascii() and text.isdigit() else 0.0


def make_refusal(location: Location, answer: str, *, is_signed: bool, remedy: str | None = None) -> HoneError:
    """Return the failure that a refused access means. `is_signed`: whether the request had credentials."""
    source = "environment" if location.secret is None else "Secret"
    with_what = f"with the credentials of the {source}" if is_signed else "without credentials"
    found = f"{location.where}, and the server refused access {with_what}: {answer}"
    return HoneError(STORE_UNAUTHORIZED, found, remedy=remedy)


def read_total(headers: "urllib3.HTTPHeaderDict", status: int) -> int | None:
    """Return the size of the object that an answer is about; None where it is not given."""
    if status in (206, 416):
        found = _TOTAL.fullmatch(headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    length = headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def read_validator(headers: "urllib3.HTTPHeaderDict") -> str:
    """Return what changes with the content: the ETag as it was sent, else the time of the last change, else ""."""
    return headers.get("ETag", "") or headers.get("Last-Modified", "")


def is_same_validator(one: str, other: str) -> bool:
    """Return whether two validators are of the same content. Servers and proxies differ in quotes and the mark W/."""
    return one.removeprefix("W/").strip('"') == other.removeprefix("W/").strip('"')


def yield_range(response: urllib3.BaseHTTPResponse, wanted: RemoteObject, start: int, end: int) -> Iterator[bytes]:
    """Yield the blocks of a range from an answer to a request for it, also from a server that sends the full object.

    Raises ChangedError when the answer is about another object.
    """
    total = read_total(response.headers, response.status)
    found = read_validator(response.headers)
    if wanted.validator and not is_same_validator(found, wanted.validator):
        raise ChangedError(f"{wanted.name} has another ETag than before")
    if total is not None and total != wanted.size:
        raise ChangedError(f"{wanted.name} has {total} bytes where {wanted.size} were listed")
    if response.status == 206:
        at = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if at != str(start):
            raise TransientError(f"the server sent bytes from {at or 'nowhere'} where {start} was asked for")
        skipped = 0
    else:
        skipped = start
    left = end - start
    for block in response.stream(BLOCK_BYTES, decode_content=False):
        kept = block[skipped:]
        skipped = max(0, skipped - len(block))
        if kept:
            yield kept[:left]
            left -= len(kept)
        if left <= 0:
            return
