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
from hone_api.io.terminal import hide_url_credentials
from hone_api.layout import REGISTRY_SCHEME
from hone_api.reasons import DESTINATION_REFUSED, INVALID_SPEC, STORE_UNAUTHORIZED, HoneError

from hone_trainer.modelpack.artifact import (
    DOCKER_MANIFEST_TYPE,
    INDEX_TYPES,
    LARGEST_MANIFEST_BYTES,
    MANIFEST_TYPE,
    compute_digest,
)
from hone_trainer.remote.connections import (
    CONNECT_SECONDS,
    READ_SECONDS,
    is_same_origin,
    is_transient,
    make_pool,
    make_refusal,
    read_total,
    read_wait,
    resolve_address,
    translate_failures,
)
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import TransientError
from hone_trainer.remote.refusals import Answer, Verdict, judge_answer, make_destination_error, read_answer
from hone_trainer.remote.registry_auth import Authorization
from hone_trainer.runtime.proxies import Connections, is_loopback

MOST_REDIRECTS = 5
# A registry on a bucket copies a large blob before it answers.
COMMIT_SECONDS = 300.0
_MOST_ERROR_BYTES = 64 * 1024
_DAMAGED_ON_THE_WAY = {"DIGEST_INVALID", "SIZE_INVALID", "BLOB_UPLOAD_INVALID"}
_LOST_BLOB_CODES = {"BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "BLOB_UPLOAD_UNKNOWN"}
_MANIFEST_CODES = {"MANIFEST_INVALID"}
_OTHER_REGISTRY = "Use a registry that takes artifacts of other types than images: the OCI specification 1.1 has them."
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
            remedy="Write oci://REGISTRY/REPOSITORY:TAG or oci://REGISTRY/REPOSITORY@sha256:DIGEST, with the host of "
            f"the registry: that of docker's short names is {_DOCKER_HUB}.",
        )
    _refuse_short_name(location, found["host"])
    return Reference(found["host"], found["repository"], found["tag"], found["digest"])


def _refuse_short_name(location: Location, host: str) -> None:
    """Raise HoneError InvalidSpec for a name without a registry's host, of which docker means that of Docker Hub.

    The rule is docker's. With an endpoint, any host may stand in the URI.
    """
    if location.endpoint or "." in host or ":" in host or is_loopback(host):
        return
    scheme = "" if location.kind == "push" and location.spec_field else REGISTRY_SCHEME
    path = location.uri.removeprefix(REGISTRY_SCHEME)
    raise HoneError(
        INVALID_SPEC,
        f"{location.where}, where {host} is no host of a registry: it has neither a dot nor a port",
        remedy=f"Write {scheme}{_DOCKER_HUB}/{path} for Docker Hub, {scheme}REGISTRY/{path} for another registry, or "
        f"{scheme}{path.replace(host, f'{host}:443', 1)} if {host} is a host of your network.",
    )


class Registry:
    """The repository of a location. `can_push`: whether tokens are requested with which blobs can be written."""

    def __init__(self, location: Location, *, can_push: bool = False) -> None:
        self.location, self.reference, self._can_push = location, parse_reference(location), can_push
        host, repository = self.reference.host, self.reference.repository
        self._pool = make_pool(location, Connections)
        server = location.endpoint or _find_address(host)
        if host == _DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        self._base = f"{server.rstrip('/')}/v2/{repository}/"
        scope = f"repository:{repository}:{'pull,push' if can_push else 'pull'}"
        self._authorization = Authorization(location, host, scope, self._request_token)

    def read_manifest(self, wanted: str | None = None) -> tuple[bytes, str] | None:
        """Return the manifest and its digest, which is compared with the content; None when there is none.

        `wanted`: the digest of another one than that of the reference.
        Raises HoneError StoreUnauthorized, StoreUnreachable and others, TransientError.
        """
        with self.request("GET", f"manifests/{wanted or self.reference.name}", {"Accept": _ACCEPTED}) as response:
            if response.status == 404:
                return None
            with translate_failures(self.location):
                content = response.read(LARGEST_MANIFEST_BYTES + 1, decode_content=True)
        if len(content) > LARGEST_MANIFEST_BYTES:
            found = f"{self.location.where}, whose manifest has more than 32 MiB"
            raise HoneError(self.location.invalid, found, remedy="Push fewer files, or pack them into archives.")
        if self._can_push and not _is_manifest(content):
            raise self._make_no_registry("answers a request for a manifest with what is none")
        digest = compute_digest(content)
        expected = wanted or self.reference.digest or response.headers.get("Docker-Content-Digest", digest)
        if expected.startswith("sha256:") and digest != expected:
            raise TransientError(f"the manifest has the digest {digest} where {expected} should be")
        return content, digest

    def has_blob(self, digest: str, size: int) -> bool:
        """Return whether the repository holds a blob of this digest and size."""
        try:
            with self.request("HEAD", f"blobs/{digest}", {}) as response:
                return response.status == 200 and response.headers.get("Content-Length", str(size)) == str(size)
        except HoneError:  # a registry or proxy that refuses HEAD; GET answers, or has the reason as a text
            with self.open_blob(digest, 0, 1) as response:
                if response.status == 416:  # an empty blob has no range
                    return size == 0
                found = read_total(response.headers, response.status)
                return response.status in (200, 206) and found in (None, size)

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
        url = self._begin_upload()
        url += f"{'&' if urlsplit(url).query else '?'}digest={digest}"
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with self.request("PUT", url, headers, body, COMMIT_SECONDS) as response:
            if response.status != 201:  # 404: the upload was dropped, and a new one may succeed
                raise TransientError(f"the registry does not take {digest}: {self._read_answer(response)}")

    def _begin_upload(self) -> str:
        """Return the URL that a blob can be sent to."""
        try:
            with self.request("POST", "blobs/uploads/", {"Content-Length": "0"}) as response:
                if response.status == 404:
                    raise self._make_missing(response)
                address = response.headers.get("Location", "")
                if response.status != 202 or not address:
                    raise self._make_no_registry(f"begins no upload: {self._read_answer(response)}")
        except TransientError as error:  # ECR ends the connection where there is no repository
            text = f"the registry begins no upload in {self.reference.repository}, which must exist at some registries"
            raise TransientError(f"{text}: {error}", error.wait_seconds) from error
        url = resolve_address(self._base + "blobs/uploads/", address)
        if url is None:
            shown = hide_url_credentials(address)
            raise HoneError(
                DESTINATION_REFUSED,
                f"{self.location.where}, and the registry takes uploads at {shown}, which is not encrypted",
                remedy="Let the proxy before the registry set X-Forwarded-Proto, or give the registry its own https:// "
                "address (of distribution: http.host, or http.relativeurls).",
            )
        return url

    def write_manifest(self, content: bytes, media_type: str) -> None:
        """Write the manifest under the reference's tag, or under its digest. Raises HoneError, TransientError."""
        headers = {"Content-Type": media_type, "Content-Length": str(len(content))}
        with self.request("PUT", f"manifests/{self.reference.name}", headers, lambda: [content]) as response:
            if response.status == 404:
                raise self._make_missing(response)
            if response.status != 201:
                raise TransientError(f"the registry does not take the manifest: {self._read_answer(response)}")

    @contextmanager
    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Body | None = None,
        answer_seconds: float = READ_SECONDS,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Send a request to a path of the repository, or to the URL of an upload; refusals are raised.

        `answer_seconds` is how long the registry may take for its answer.
        """
        url = urljoin(self._base, path) if "://" not in path else path
        with translate_failures(self.location):
            response, used, answered = self._send(method, url, headers, body, answer_seconds)
            is_elsewhere = not (self._can_push or is_same_origin(answered, self._base))
            if response.status in (401, 403) and is_elsewhere:
                raise self._refuse_storage(answered, response)
            if response.status == 401:
                challenges = response.headers.getlist("WWW-Authenticate")
                response.close()
                if not self._authorization.answer(challenges, used, self._base):
                    raise self._refuse(self._read_answer(response))
                response, _, _ = self._send(method, url, headers, body, answer_seconds)
        try:
            if response.status not in (200, 201, 202, 204, 206, 404, 416):
                raise self._explain(self._read_answer(response), read_wait(response.headers))
            yield response
            if method != "GET":  # read to its end, so that the connection can be used again
                response.read(_MOST_ERROR_BYTES)
        finally:
            response.close()

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None, answer_seconds: float
    ) -> tuple[urllib3.BaseHTTPResponse, str | None, str]:
        """Send a request and follow redirects, which registries use for blobs in a bucket.

        Return the answer, and authorization and URL of the request that was answered.
        """
        for _ in range(MOST_REDIRECTS + 1):
            used = self._authorization.header if is_same_origin(url, self._base) else None
            sent = {**headers, **({"Authorization": used} if used else {})}
            response = self._pool.request(
                method,
                url,
                headers=sent,
                body=body() if body else None,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=answer_seconds),
                preload_content=False,
                redirect=False,
            )
            if response.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD"):
                return response, used, url
            response.close()
            target = resolve_address(url, response.headers.get("Location", ""))
            if target is None:
                found = f"{self.location.where}, and the registry redirects to an address that is not https://"
                raise HoneError(self.location.missing, found)
            url = target
        found = f"{self.location.where}, and the registry redirects more than {MOST_REDIRECTS} times"
        raise HoneError(self.location.missing, found)

    def _request_token(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        return self._pool.request("GET", url, headers=dict(headers), preload_content=False, redirect=False)

    def _read_answer(self, response: urllib3.BaseHTTPResponse) -> Answer:
        """Return what a registry answers. Its text has none of the credentials that were sent."""
        try:
            content = response.read(_MOST_ERROR_BYTES, decode_content=True)
        except urllib3.exceptions.HTTPError:
            content = b""
        return read_answer(response.status, content, self._authorization.secrets)

    def _explain(self, answer: Answer, wait_seconds: float) -> HoneError | TransientError:
        """Return the failure that an answer means."""
        where = f"{self.location.where}, and the registry"
        if not self._can_push:
            if is_transient(answer.status):
                return TransientError(str(answer), wait_seconds)
            if answer.status in (401, 403):
                return self._refuse(answer)
            return HoneError(self.location.missing, f"{where} answers {answer}")
        verdict = judge_answer(answer)
        if answer.code in _DAMAGED_ON_THE_WAY or verdict is Verdict.PASSING:
            return TransientError(str(answer), wait_seconds)
        if verdict is Verdict.UNAUTHORIZED:
            return self._refuse(answer)
        if verdict is Verdict.MISSING:
            return HoneError(self.location.missing, f"{where} answers {answer}")
        remedy = _OTHER_REGISTRY if answer.code in _MANIFEST_CODES else None
        field = self.location.name_field("oci")
        return make_destination_error(f"{where} refuses the artifact: {answer}", verdict, field, remedy)

    def _make_missing(self, response: urllib3.BaseHTTPResponse) -> HoneError | TransientError:
        """Return the failure that status 404 means as the answer to a write."""
        answer, repository = self._read_answer(response), self.reference.repository
        if answer.code in _LOST_BLOB_CODES:
            return TransientError(str(answer))
        return HoneError(
            self.location.missing,
            f"{self.location.where}, and the registry has no place for it: {answer}",
            remedy=f"Create the repository {repository} in the registry, which does not create it with a push, or "
            f"correct {self.location.name_field('oci')}.",
        )

    def _make_no_registry(self, found: str) -> HoneError:
        """Return the failure of a server that answers, and not as a registry does."""
        server = hide_url_credentials(self._base.partition("/v2/")[0])
        return HoneError(
            INVALID_SPEC,
            f"{self.location.where}, and {server} is no registry: it {found}",
            remedy=f"Name the host of a registry in {self.location.name_field('oci')}, not of its web page. Or log in "
            "at the portal of the network, if there is one.",
        )

    def _refuse_storage(self, url: str, response: urllib3.BaseHTTPResponse) -> HoneError:
        """Return the failure of a store of blobs that refuses the address which the registry has signed for it."""
        answer, host = self._read_answer(response), urlsplit(url).netloc
        response.close()
        return HoneError(
            STORE_UNAUTHORIZED,
            f"{self.location.where}, and {host}, where the registry keeps its blobs, refused access: {answer}",
            remedy=f"The registry itself has accepted the request: have its clock and its own access to {host} "
            "checked, or the proxy between this machine and that host.",
        )

    def _refuse(self, answer: Answer) -> HoneError:
        remedy = None
        if self._can_push:
            secret = self.location.name_field("secret")
            remedy = f"Give credentials that may pull from and push to {self.reference.repository}, in {secret}."
        return make_refusal(self.location, str(answer), is_signed=self._authorization.is_signed, remedy=remedy)


def _find_address(host: str) -> str:
    """Return the URL of a registry's server."""
    if host == _DOCKER_HUB:
        return "https://registry-1.docker.io"
    return f"{'http' if is_loopback(urlsplit(f'//{host}').hostname or '') else 'https'}://{host}"


def _is_manifest(content: bytes) -> bool:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "schemaVersion" in found
