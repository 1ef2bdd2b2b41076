"""Requests to an OCI registry: manifests by tag or digest, and blobs by digest, read by range and written as a stream.

A thin client on urllib3, as for the other stores. The package oras (oras-py 0.2) was considered and not taken: it
uploads a blob by reading the file into memory, downloads without ranges and without comparing digests, and brings
another HTTP library with its own retries. The protocol that Hone needs of a registry is seven requests.

Plain HTTP is used for a registry on loopback, and where the location's endpoint is an http:// URL.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import urllib3
from hone_api.reasons import INVALID_SPEC, HoneError

from hone_trainer.modelpack.artifact import (
    DOCKER_MANIFEST_TYPE,
    INDEX_TYPES,
    LARGEST_MANIFEST_BYTES,
    MANIFEST_TYPE,
    compute_digest,
)
from hone_trainer.remote.connections import is_transient, make_pool, make_refusal, read_wait, translate_failures
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import TransientError
from hone_trainer.remote.registry_auth import Authorization
from hone_trainer.runtime.proxies import Connections, is_loopback

MOST_REDIRECTS = 5
_MOST_ERROR_BYTES = 64 * 1024
_ACCEPTED = ", ".join((MANIFEST_TYPE, DOCKER_MANIFEST_TYPE, *INDEX_TYPES))
_URI = re.compile(
    r"oci://(?P<host>[^/?#@\s]+)/(?P<repository>[a-z0-9]+(?:(?:[._/]|__|-+)[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_DOCKER_HUB = "docker.io"

Body = Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Reference:
    """The parts of a URI `oci://HOST/REPOSITORY:TAG` or `…@sha256:DIGEST`; with both, the digest counts."""

    host: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def name(self) -> str:
        """What the registry is asked for: the digest, else the tag."""
        return self.digest or self.tag or ""


def parse_reference(location: Location) -> Reference:
    """Return the parts of a location's URI. Raises HoneError InvalidSpec."""
    found = _URI.fullmatch(location.uri)
    if not found or not (found["tag"] or found["digest"]):
        raise HoneError(
            INVALID_SPEC,
            f"{location.where}, which names no artifact of a registry",
            remedy="Write oci://REGISTRY/REPOSITORY:TAG or oci://REGISTRY/REPOSITORY@sha256:DIGEST.",
        )
    return Reference(found["host"], found["repository"], found["tag"], found["digest"])


class Registry:
    """The repository of a location. `can_push`: whether tokens are requested with which blobs can be written."""

    def __init__(self, location: Location, *, can_push: bool = False) -> None:
        self.location, self.reference = location, parse_reference(location)
        host, repository = self.reference.host, self.reference.repository
        self._pool = make_pool(location, Connections)
        server = location.endpoint or _find_address(host)
        if host == _DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        self._base = f"{server.rstrip('/')}/v2/{repository}/"
        scope = f"repository:{repository}:{'pull,push' if can_push else 'pull'}"
        self._authorization = Authorization(location, host, scope, self._request_token)

    def read_manifest(self) -> tuple[bytes, str] | None:
        """Return the manifest and its digest, which is compared with the content; None when there is none.

        Raises HoneError StoreUnauthorized, StoreUnreachable and others, TransientError.
        """
        with self.request("GET", f"manifests/{self.reference.name}", {"Accept": _ACCEPTED}) as response:
            if response.status == 404:
                return None
            with translate_failures(self.location):
                content = response.read(LARGEST_MANIFEST_BYTES + 1, decode_content=True)
        if len(content) > LARGEST_MANIFEST_BYTES:
            raise HoneError(self.location.invalid, f"{self.location.where}, whose manifest has more than 32 MiB")
        digest = compute_digest(content)
        expected = self.reference.digest or response.headers.get("Docker-Content-Digest", digest)
        if expected.startswith("sha256:") and digest != expected:
            raise TransientError(f"the manifest has the digest {digest} where {expected} should be")
        return content, digest

    def find_digest(self) -> str | None:
        """Return the digest of the manifest that the tag has now; None when there is none."""
        with self.request("HEAD", f"manifests/{self.reference.name}", {"Accept": _ACCEPTED}) as response:
            return response.headers.get("Docker-Content-Digest") if response.status == 200 else None

    def has_blob(self, digest: str, size: int) -> bool:
        """Return whether the repository holds a blob of this digest and size."""
        with self.request("HEAD", f"blobs/{digest}", {}) as response:
            return response.status == 200 and response.headers.get("Content-Length", str(size)) == str(size)

    @contextmanager
    def open_blob(self, digest: str, start: int, end: int) -> Iterator[urllib3.BaseHTTPResponse]:
        """Open a range of a blob; the status is 206, or 200 for all of it, or 404 or 416."""
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with self.request("GET", f"blobs/{digest}", headers) as response:
            yield response

    def write_blob(self, digest: str, size: int, body: Body) -> None:
        """Send a blob. `body` returns its blocks, from the begin each time. The registry compares the digest.

        Raises HoneError, TransientError.
        """
        with self.request("POST", "blobs/uploads/", {"Content-Length": "0"}) as response:
            address = response.headers.get("Location", "")
            if response.status != 202 or not address:
                raise TransientError(f"the registry begins no upload: status {response.status}")
        url = urljoin(self._base + "blobs/uploads/", address)
        url += f"{'&' if urlsplit(url).query else '?'}digest={digest}"
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with self.request("PUT", url, headers, body) as response:
            if response.status != 201:
                raise TransientError(f"the registry does not take {digest}: {_describe_answer(response)}")

    def write_manifest(self, content: bytes, media_type: str) -> None:
        """Write the manifest under the reference's tag, or under its digest. Raises HoneError, TransientError."""
        headers = {"Content-Type": media_type, "Content-Length": str(len(content))}
        with self.request("PUT", f"manifests/{self.reference.name}", headers, lambda: [content]) as response:
            if response.status != 201:
                raise TransientError(f"the registry does not take the manifest: {_describe_answer(response)}")

    @contextmanager
    def request(
        self, method: str, path: str, headers: Mapping[str, str], body: Body | None = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Send a request to a path of the repository, or to the URL of an upload; refusals are raised."""
        url = urljoin(self._base, path) if "://" not in path else path
        with translate_failures(self.location):
            response, used = self._send(method, url, headers, body)
            if response.status == 401:
                challenges = response.headers.getlist("WWW-Authenticate")
                response.close()
                if not self._authorization.answer(challenges, used, self._base):
                    raise self._refuse(response)
                response, _ = self._send(method, url, headers, body)
        try:
            if response.status in (401, 403):
                raise self._refuse(response)
            if is_transient(response.status):
                raise TransientError(f"status {response.status}", read_wait(response.headers))
            if response.status not in (200, 201, 202, 206, 404, 416):
                found = f"{self.location.where}, and the registry answers {_describe_answer(response)}"
                raise HoneError(self.location.missing, found)
            yield response
            if method != "GET":  # read to its end, so that the connection can be used again
                response.read(_MOST_ERROR_BYTES)
        finally:
            response.close()

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None
    ) -> tuple[urllib3.BaseHTTPResponse, str | None]:
        """Send a request and follow redirects, which registries use for blobs in a bucket.

        Return the answer, and the authorization of the request that was answered.
        """
        own = urlsplit(self._base)
        for _ in range(MOST_REDIRECTS + 1):
            used = self._authorization.header if urlsplit(url)[:2] == own[:2] else None
            sent = {**headers, **({"Authorization": used} if used else {})}
            response = self._pool.request(
                method, url, headers=sent, body=body() if body else None, preload_content=False, redirect=False
            )
            if response.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD"):
                return response, used
            response.close()
            url = self._resolve_redirect(url, response.headers.get("Location", ""))
        found = f"{self.location.where}, and the registry redirects more than {MOST_REDIRECTS} times"
        raise HoneError(self.location.missing, found)

    def _resolve_redirect(self, url: str, address: str) -> str:
        try:
            target = urljoin(url, address)
            is_usable = urlsplit(target).scheme in ("https", urlsplit(self._base).scheme)
        except ValueError:
            is_usable = False
        if not is_usable:
            found = f"{self.location.where}, and the registry redirects to an address that is not https://"
            raise HoneError(self.location.missing, found)
        return target

    def _request_token(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        return self._pool.request("GET", url, headers=dict(headers), preload_content=False, redirect=False)

    def _refuse(self, response: urllib3.BaseHTTPResponse) -> HoneError:
        answer = _describe_answer(response)
        return make_refusal(self.location, answer, is_signed=self._authorization.is_signed)


def _find_address(host: str) -> str:
    """Return the URL of a registry's server."""
    if host == _DOCKER_HUB:
        return "https://registry-1.docker.io"
    return f"{'http' if is_loopback(urlsplit(f'//{host}').hostname or '') else 'https'}://{host}"


def _describe_answer(response: urllib3.BaseHTTPResponse) -> str:
    """Return status and text of a registry's error, for a message."""
    try:
        errors = json.loads(response.read(_MOST_ERROR_BYTES))["errors"]
        text = "; ".join(f"{error['code']}: {error.get('message', '')}" for error in errors[:3])
    except (ValueError, KeyError, TypeError, AttributeError, urllib3.exceptions.HTTPError):
        return f"status {response.status}"
    return f"status {response.status}, {' '.join(text.split()):.300}"
