"""A bucket of an S3 server: AWS, or any other at `endpoint`, which is addressed by path.

Requests are signed by the package minio. Credentials are those of the Secret, else those of the environment: the
variables, the profile, a pod's identity. Without any, requests are not signed, as public buckets need it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree.ElementTree import ParseError

from hone_api.reasons import INVALID_SPEC, HoneError
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.helpers import check_bucket_name

from hone_trainer.remote.connections import (
    is_transient,
    make_pool,
    make_refusal,
    read_wait,
    translate_failures,
    yield_range,
)
from hone_trainer.remote.credentials import SECRET_KEY, SESSION_TOKEN, find_provider
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import ChangedError, Checksums, RemoteObject, TransientError, decode_sha256
from hone_trainer.remote.refusals import Answer, clean_text, read_answer
from hone_trainer.runtime.proxies import Connections

AWS = "https://s3.amazonaws.com"
_CHANGED_CODES = {"NoSuchKey": "is gone", "NoSuchVersion": "is gone", "InvalidRange": "is shorter than before"}
# AWS answers some of these with status 400.
_REFUSED_CODES = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_REGION_CODES = {
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "TemporaryRedirect",
    "Redirect",
    "IllegalLocationConstraintException",
}
_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "ServiceUnavailable", "InternalError"}
# Rights of a policy, of which a refused request lacks one.
LIST_RIGHT, READ_RIGHT = "s3:ListBucket", "s3:GetObject"
_MD5 = re.compile("[0-9a-f]{32}")
_WITH_CHECKSUMS = {"x-amz-checksum-mode": "ENABLED"}
# What the client raises for an answer that is no answer of an S3 server, such as a page of a console.
_UNREADABLE = (ParseError, ValueError, AttributeError)


class _EndlessListError(Exception):
    """The server lists the same page again."""


class _Connections(Connections):
    """Connections that request each page of a listing once: an answer that names no next page has no end."""

    pages: set[str]

    def start_listing(self) -> None:
        """Forget the pages of the listing before."""
        self.pages = set()

    def urlopen(self, method: str, url: str, *arguments: Any, **more: Any) -> Any:
        """Request a URL. Raises what urllib3 raises, and _EndlessListError."""
        if "list-type" in parse_qs(urlsplit(url).query):
            if url in self.pages:
                raise _EndlessListError
            self.pages.add(url)
        return super().urlopen(method, url, *arguments, **more)


class S3Store:
    """The objects below a URI `s3://BUCKET/KEY`: that key alone, or all below `KEY/`."""

    def __init__(self, location: Location) -> None:
        self._location = location
        address = urlsplit(location.uri)
        self._bucket, self._key = address.netloc, address.path.removeprefix("/")
        address_of_server = location.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or AWS
        region = location.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        self._region = region or "us-east-1"
        self._checksums: dict[RemoteObject, Checksums] = {}
        self._provider = find_provider(location)
        self._connections = make_pool(location, _Connections)
        try:
            endpoint = urlsplit(address_of_server)
            self._server = f"{endpoint.scheme}://{endpoint.netloc.rpartition('@')[2]}"
            self._client = Minio(
                endpoint.netloc + endpoint.path.rstrip("/"),
                secure=endpoint.scheme == "https",
                region=self._region,
                credentials=self._provider,
                http_client=self._connections,
            )
        except ValueError as error:
            found = f"{location.where}, and its endpoint can't be used: {error}"
            field = location.name_field("endpoint")
            remedy = f"Set {field} to scheme, host and port of an S3 server, without the bucket."
            raise HoneError(INVALID_SPEC, found, remedy=remedy) from None
        self._refuse_unusable_uri()

    def list_objects(self) -> list[RemoteObject]:
        """Return the objects of the URI. Raises HoneError DatasetNotFound, StoreUnauthorized, InvalidSpec, …"""
        exact: list[RemoteObject] = []
        if self._key and not self._key.endswith("/"):
            exact = [found for found in self._list(self._key, first_only=True) if found.key == self._key]
            if exact and exact[0].size:
                return exact
        prefix = self._key if self._key.endswith("/") or not self._key else f"{self._key}/"
        return self._list(prefix) or exact  # an empty object may stand for the folder

    def read_checksums(self, wanted: RemoteObject) -> Checksums:
        """Return the MD5 or SHA-256 of an object, where its ETag or another header is one."""
        if known := self._checksums.pop(wanted, None):
            return known
        try:
            with self._translate_failures():
                found = self._client.stat_object(self._bucket, wanted.key, extra_headers=dict(_WITH_CHECKSUMS))
            given = found.metadata or {}
        except HoneError:  # a server or proxy that refuses HEAD, where GET was answered
            given = {}
        return _find_checksums(wanted, given)

    @contextmanager
    def read(self, wanted: RemoteObject, start: int, end: int) -> Iterator[Iterator[bytes]]:
        """Open a range of an object. Raises HoneError, TransientError, ChangedError."""
        # Not as a range: that answer has the checksums too, which saves a request for each small object.
        is_all = start == 0 and end == wanted.size
        condition = {"If-Match": wanted.validator} if wanted.validator else {}
        with self._translate_failures():
            response = self._client.get_object(
                self._bucket,
                wanted.key,
                start,
                0 if is_all else end - start,
                request_headers={**condition, **(_WITH_CHECKSUMS if is_all else {})},
            )
            if is_all:
                self._checksums[wanted] = _find_checksums(wanted, response.headers)
        try:
            yield self._yield_named(yield_range(response, wanted, start, end))
        finally:
            response.close()

    def _yield_named(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield blocks. Failures to read them get their name; those of the consumer are not touched."""
        with self._translate_failures():
            yield from blocks

    def _list(self, prefix: str, *, first_only: bool = False) -> list[RemoteObject]:
        """Return the objects below a prefix, or the one that is listed first, without the marks of folders."""
        listed: dict[str, RemoteObject] = {}
        with self._translate_failures(LIST_RIGHT):
            self._connections.start_listing()
            for found in self._client.list_objects(self._bucket, prefix, recursive=True):
                key = str(found.object_name)
                if key in listed:
                    raise _EndlessListError
                name = key.rpartition("/")[2] if first_only else key[len(prefix) :]
                if not key.endswith("/"):  # a folder, as consoles make them
                    listed[key] = _describe(name, found)
                if first_only:
                    break
        return list(listed.values())

    def _refuse_unusable_uri(self) -> None:
        """Raise HoneError InvalidSpec for a bucket or key that can't be requested."""
        problem = "its key has the part '.' or '..'" if {".", ".."} & set(self._key.split("/")) else ""
        try:
            check_bucket_name(self._bucket)
        except ValueError as error:
            problem = str(error)
        if problem:
            remedy = f"Correct {self._location.name_field('uri')}, or move the objects to another bucket or key."
            raise HoneError(INVALID_SPEC, f"{self._location.where}, and {problem}", remedy=remedy)

    @contextmanager
    def _translate_failures(self, right: str = READ_RIGHT) -> Iterator[None]:
        """Within the context, give failures of the client their name. `right`: what the request needs of a policy."""
        try:
            with translate_failures(self._location):
                yield
        except S3Error as error:
            raise self._explain(error, right) from error
        except (InvalidResponseError, ServerError) as error:
            status = int(getattr(error, "_code", 0) or getattr(error, "_status_code", 0))
            page = str(getattr(error, "_body", "") or "")
            raise self._explain_page(read_answer(status, page.encode()), right) from error
        except MinioException as error:
            raise TransientError(" ".join(str(error).split())) from error
        except _EndlessListError:
            raise self._make_no_store_error("lists the same objects again and again") from None
        except _UNREADABLE as error:
            raise self._make_no_store_error(
                f"answers, and not as an S3 server does ({type(error).__name__})"
            ) from error

    def _explain(self, error: S3Error, right: str) -> Exception:
        code, status, message = error.code or "", int(error.response.status), self._read_message(error)
        where = self._location.where
        if code == "PreconditionFailed":
            return ChangedError(f"{error.object_name or 'an object'} has another ETag than before")
        if code in _CHANGED_CODES:
            return ChangedError(f"{error.object_name or 'an object'} {_CHANGED_CODES[code]}")
        if code == "NoSuchBucket":
            return HoneError(self._location.missing, f"{where}, and there is no bucket {self._bucket}")
        if code in _TRANSIENT_CODES or is_transient(status):
            return TransientError(str(Answer(status, code, message)), read_wait(error.response.headers))
        if explained := self._explain_refusal(code, message, right):
            return explained
        if code in _REGION_CODES or "region" in message.lower():
            return HoneError(
                INVALID_SPEC,
                f"{where}, and its bucket is not in region {self._region}: {code}: {message}",
                remedy=f"Set {self._location.name_field('region')} to the bucket's region.",
            )
        if status in (401, 403):
            return self._make_refusal(f"{code}: {message}", self._advise(right, message))
        return self._explain_other(Answer(status, code, message))

    def _read_message(self, error: S3Error) -> str:
        """Return the server's sentence without the credentials that were sent."""
        secrets = self._location.secret or {}
        return clean_text(error.message or "", tuple(secrets.get(name, "") for name in (SECRET_KEY, SESSION_TOKEN)))

    def _explain_page(self, answer: Answer, right: str) -> Exception:
        """Return the failure that an answer of a proxy means, or of another server that is none for S3."""
        if is_transient(answer.status):
            return TransientError(str(answer))
        if answer.status in (401, 403):
            return self._make_refusal(str(answer), self._advise(right, answer.sentence))
        return self._make_no_store_error(f"answers with {answer}, and not as an S3 server does")

    def _explain_other(self, answer: Answer) -> HoneError:
        """Return the failure that a code means which is about this request."""
        uri, endpoint, region = map(self._location.name_field, ("uri", "endpoint", "region"))
        remedy = f"Check {uri}, and {endpoint} and {region} if they are set."
        found = f"{self._location.where}, and {self._server} answers {answer.code}: {answer.sentence}"
        return HoneError(INVALID_SPEC, found, remedy=remedy)

    def _explain_refusal(self, code: str, message: str, right: str) -> HoneError | None:
        """Return the failure that a code of refused access means; None for another code."""
        text = f"{code}: {message}"
        if code in _REFUSED_CODES or (code == "AuthorizationHeaderMalformed" and "region" not in message.lower()):
            return self._make_refusal(text, self._advise(right, message) if code == "AccessDenied" else None)
        if code in _EXPIRED_CODES:
            secret = self._location.name_field("secret")
            remedy = f"Give credentials that are valid now, in {secret}: temporary ones have expired."
            return self._make_refusal(text, remedy)
        if code == "RequestTimeTooSkewed":
            return self._make_refusal(
                text, "Set the clock of the node that the pod runs on: it differs from the server's."
            )
        if code.startswith("KMS."):
            return self._make_refusal(text, "Give credentials that may use the key that encrypts the objects.")
        if code == "InvalidObjectState":
            found = f"{self._location.where}, and an object is archived: {text}"
            remedy = "Restore the objects to a storage class that can be read at once."
            return HoneError(self._location.invalid, found, remedy=remedy)
        return None

    def _advise(self, right: str, message: str) -> str:
        """Return the remedy for a request that lacks a right. AWS names a missing key in its message."""
        place = f"bucket {self._bucket}"
        if "kms" in message.lower():
            right = "kms:Decrypt" if right in (LIST_RIGHT, READ_RIGHT) else "kms:GenerateDataKey and kms:Decrypt"
            place = "the key that encrypts the objects"
        return f"Give credentials with the right {right} on {place}, in {self._location.name_field('secret')}."

    def _make_refusal(self, answer: str, remedy: str | None = None) -> HoneError:
        return make_refusal(self._location, answer, is_signed=self._provider is not None, remedy=remedy)

    def _make_no_store_error(self, answer: str) -> HoneError:
        return HoneError(
            INVALID_SPEC,
            f"{self._location.where}, and {self._server} {answer}",
            remedy=f"Set {self._location.name_field('endpoint')} to the URL of an S3 server, not of its console.",
        )


def _describe(name: str, found: "object") -> RemoteObject:
    """Return a listed object. Raises ValueError for a size that is none."""
    etag = str(getattr(found, "etag", "") or "").strip('"')
    key, size = str(getattr(found, "object_name", "")), int(getattr(found, "size", 0) or 0)
    if size < 0:
        raise ValueError(f"{key} has {size} bytes")
    return RemoteObject(name, key, size, f'"{etag}"' if etag else "", has_ranges=bool(etag))


def _find_checksums(wanted: RemoteObject, given: Mapping[str, str]) -> Checksums:
    """Return the digests that the headers of an answer about an object hold."""
    is_encrypted = given.get("x-amz-server-side-encryption", "AES256") != "AES256"
    etag = wanted.validator.strip('"')
    md5 = etag if _MD5.fullmatch(etag) and not is_encrypted else None
    sha256 = given.get("x-amz-checksum-sha256", "")
    is_of_all = "-" not in sha256 and given.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT"
    return Checksums(md5, decode_sha256(sha256) if is_of_all else None)
