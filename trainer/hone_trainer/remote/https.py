"""Files behind HTTPS: one for a dataset; for a model, a folder in which its files have the usual names."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from hone_api.artifacts.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hone_api.reasons import INVALID_SPEC, STORE_UNAUTHORIZED, HoneError

from hone_trainer.remote.connections import (
    is_transient,
    make_pool,
    make_refusal,
    read_total,
    read_validator,
    read_wait,
    translate_failures,
    yield_range,
)
from hone_trainer.remote.credentials import make_authorization
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import ChangedError, Checksums, RemoteObject, TransientError, decode_sha256
from hone_trainer.runtime.proxies import Connections

MOST_REDIRECTS = 5
MOST_INDEX_BYTES = 64 * 1024**2
# How a page begins, and so many bytes of a file are compared with it.
_PAGES = (b"<!doctype html", b"<html")
_START_BYTES = 256
CONFIG = "config.json"
# The files of a model besides its configuration and weights. HTTPS can't list a folder, so each is requested.
MODEL_FILES = (
    "generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json "
    "tokenizer.model vocab.json merges.txt vocab.txt chat_template.jinja README.md".split()
)
# Weights in order of preference: an index names the files that hold them.
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


class HttpsStore:
    """The file or, with `as_folder`, the folder of a model or adapter at a URL."""

    def __init__(self, location: Location, *, as_folder: bool = False) -> None:
        self._location = location
        self._as_folder = as_folder
        self._pool = make_pool(location, Connections)
        self._headers = {"Accept-Encoding": "identity", **make_authorization(location)}
        self._has_seen_page = False

    def list_objects(self) -> list[RemoteObject]:
        """Return the file or the model's files. Raises HoneError DatasetNotFound, StoreUnauthorized and others."""
        if not self._as_folder:
            if self._location.uri.endswith("/"):
                raise HoneError(
                    INVALID_SPEC,
                    f"{self._location.where}, which is a folder, and HTTPS can't list one",
                    remedy="Name a file, or copy the folder to a bucket or a claim.",
                )
            found = self._probe(self._location.uri)
            self._refuse_page(found)
            return [found] if found else []
        weights: Sequence[str] = WEIGHTS
        config = self._probe(self._build_url(CONFIG))
        if not config:
            weights = ADAPTER_WEIGHTS
            config = self._probe(self._build_url(ADAPTER_CONFIG))
        self._refuse_page(config)
        if not config:
            return []
        refusals: list[HoneError] = []
        texts = [self._probe_optional(name, refusals) for name in MODEL_FILES]
        listed = [config, *(found for found in texts if found)]
        refusals.clear()
        for name in weights:
            found = self._probe_optional(name, refusals)
            if found:
                if name.endswith(".index.json"):
                    shards = [self._probe(self._build_url(shard), shard) for shard in self._read_index(found)]
                    listed += [shard for shard in shards if shard]
                return [*listed, found]
        if refusals:
            raise refusals[0]
        return listed

    def read_checksums(self, wanted: RemoteObject) -> Checksums:
        """Return the digest of RFC 9530, where the server gives it."""
        with self._request(wanted.key, {"Range": "bytes=0-0"}) as response:
            text = response.headers.get("Repr-Digest", "")
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            if name == "sha-256" and value.startswith(":"):
                return Checksums(sha256=decode_sha256(value.strip(":")))
        return Checksums()

    @contextmanager
    def read(self, wanted: RemoteObject, start: int, end: int) -> Iterator[Iterator[bytes]]:
        """Open a range of a file. Raises HoneError, TransientError, ChangedError."""
        headers = {"Range": f"bytes={start}-{end - 1}"} if wanted.has_ranges else {}
        if wanted.validator.startswith('"'):  # a weak ETag never matches
            headers["If-Match"] = wanted.validator
        with self._request(wanted.key, headers) as response:
            if response.status in (404, 410, 412, 416):
                raise ChangedError(f"{wanted.name}: status {response.status}")
            yield self._yield_named(yield_range(response, wanted, start, end))

    def _yield_named(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield blocks. Failures to read them get their name; those of the consumer are not touched."""
        with translate_failures(self._location):
            yield from blocks

    def _build_url(self, name: str) -> str:
        return f"{self._location.uri.rstrip('/')}/{name}"

    def _probe_optional(self, name: str, refusals: list[HoneError]) -> RemoteObject | None:
        """Return a file of a model whose configuration could be read; None when it is not there.

        Buckets behind HTTPS answer a request for a missing file with 403: a refusal is noted, and is no failure.
        """
        try:
            return self._probe(self._build_url(name))
        except HoneError as error:
            if error.reason is not STORE_UNAUTHORIZED:
                raise
            refusals.append(error)
            return None

    def _probe(self, url: str, name: str | None = None) -> RemoteObject | None:
        """Return size and validator of a file, by a request for its first byte; None when it is not there.

        Portals, and applications with one page, answer a request for what they don't have with a page and status 200.
        """
        with self._request(url, {"Range": "bytes=0-0"}) as response:
            if response.status in (404, 410):
                return None
            size = read_total(response.headers, response.status)
            validator = read_validator(response.headers)
            has_ranges = response.status == 206 and bool(validator)
            is_html = response.headers.get("Content-Type", "").lower().startswith("text/html")
        if size is None:
            raise HoneError(
                self._location.invalid,
                f"{self._location.where}, and the server does not report the size of {url}",
                remedy="Serve it with Content-Length, or copy it to a bucket or a claim.",
            )
        found = RemoteObject(name or unquote(urlsplit(url).path).rpartition("/")[2], url, size, validator, has_ranges)
        if is_html and self._is_page(found):
            self._has_seen_page = True
            return None
        return found

    def _is_page(self, found: RemoteObject) -> bool:
        """Return whether the content of a file is a page: some servers call every file text/html."""
        with self.read(found, 0, min(found.size, _START_BYTES)) as blocks:
            start = b"".join(blocks)
        return start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES)

    def _refuse_page(self, found: RemoteObject | None) -> None:
        """Raise HoneError for a source that is not there, and in whose place the server has sent a page."""
        if not found and self._has_seen_page:
            raise HoneError(
                self._location.missing,
                f"{self._location.where}, and the server answers with a page in HTML, and not with the file",
                remedy=f"Name the address of the file itself. If the page asks to log in, give the login in "
                f"{self._location.name_field('secret')}.",
            )

    def _read_index(self, index: RemoteObject) -> list[str]:
        """Return the names of the files that an index of weights names."""
        if index.size > MOST_INDEX_BYTES:
            raise HoneError(self._location.invalid, f"{self._location.where}, and {index.name} is no index of weights")
        with self.read(index, 0, index.size) as blocks:
            content = b"".join(blocks)
        try:
            return sorted({str(name) for name in json.loads(content)["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError):
            found = f"{self._location.where}, and {index.name} is no index of weights"
            raise HoneError(self._location.invalid, found) from None

    @contextmanager
    def _request(self, url: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        """Request a URL, following redirects; credentials only go to the host of the URI."""
        with translate_failures(self._location):
            response = self._follow(url, headers)
        try:
            if response.status in (401, 403):
                is_signed = "Authorization" in self._headers
                raise make_refusal(self._location, f"status {response.status}", is_signed=is_signed)
            if is_transient(response.status):
                raise TransientError(f"status {response.status}", read_wait(response.headers))
            if response.status not in (200, 206, 404, 410, 412, 416):
                found = f"{self._location.where}, and the server answers with status {response.status}"
                raise HoneError(self._location.missing, found)
            yield response
        finally:
            response.close()

    def _follow(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        own = urlsplit(self._location.uri)
        for _ in range(MOST_REDIRECTS + 1):
            is_own = urlsplit(url)[:2] == own[:2]
            sent = {name: text for name, text in self._headers.items() if is_own or name != "Authorization"}
            response = self._pool.request("GET", url, headers=sent | headers, preload_content=False, redirect=False)
            if response.status not in (301, 302, 303, 307, 308):
                return response
            response.close()
            try:
                url = urljoin(url, response.headers.get("Location", ""))
                target = urlsplit(url)
            except ValueError:
                found = f"{self._location.where}, and the server redirects to an address that is no URL"
                raise HoneError(self._location.missing, found) from None
            if own.scheme == "https" and target.scheme != "https":
                shown = f"{target.scheme}://{target.hostname}{target.path}"  # user and query may be credentials
                raise HoneError(
                    INVALID_SPEC,
                    f"{self._location.where}, and the server redirects to {shown}, which is not encrypted",
                    remedy="Name the https:// address of the file itself.",
                )
        found = f"{self._location.where}, and the server redirects more than {MOST_REDIRECTS} times"
        raise HoneError(self._location.missing, found)
