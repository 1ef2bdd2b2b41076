"""A bucket of an S3 server: AWS, or any other at `endpoint`, which is addressed by path.

Requests are signed by the package minio. Credentials are those of the Secret, else those of the environment: the
variables, the profile, a pod's identity. Without any, requests are not signed, as public buckets need it.
"""

import os
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from hone_api.reasons import INVALID_SPEC, HoneError
from minio import Minio
from minio.credentials.providers import (
    AWSConfigProvider,
    ChainedProvider,
    EnvAWSProvider,
    IamAwsProvider,
    Provider,
    StaticProvider,
)
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from hone_trainer.remote.connections import is_transient, make_pool, named_failures, read_wait, refused, yield_range
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import ChangedError, Checksums, RemoteObject, TransientError

AWS = "https://s3.amazonaws.com"
ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
# Set by EKS in pods whose service account has a role.
_IDENTITY = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
_REGION_CODES = {"AuthorizationHeaderMalformed", "PermanentRedirect", "Redirect", "IllegalLocationConstraintException"}
_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "ServiceUnavailable", "InternalError"}
_MD5 = re.compile("[0-9a-f]{32}")
_WITH_CHECKSUMS = {"x-amz-checksum-mode": "ENABLED"}


class S3Store:
    """The objects below a URI `s3://BUCKET/KEY`: that key alone, or all below `KEY/`."""

    def __init__(self, location: Location) -> None:
        self._location = location
        address = urlsplit(location.uri)
        self._bucket, self._key = address.netloc, address.path.removeprefix("/")
        endpoint = urlsplit(location.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or AWS)
        region = location.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        self._region = region or "us-east-1"
        self._checksums: dict[RemoteObject, Checksums] = {}
        self._client = Minio(
            endpoint.netloc,
            secure=endpoint.scheme == "https",
            region=self._region,
            credentials=_find_credentials(location),
            http_client=make_pool(location),
        )

    def list_objects(self) -> list[RemoteObject]:
        """Return the objects of the URI. Raises HoneError DatasetNotFound, StoreUnauthorized, InvalidSpec, …"""
        with self._named():
            if self._key and not self._key.endswith("/"):
                first = next(iter(self._client.list_objects(self._bucket, self._key, recursive=True)), None)
                if first and first.object_name == self._key:
                    return [_describe(self._key.rpartition("/")[2], first)]
            prefix = self._key if self._key.endswith("/") or not self._key else f"{self._key}/"
            found = self._client.list_objects(self._bucket, prefix, recursive=True)
            return [
                _describe(str(each.object_name)[len(prefix) :], each)
                for each in found
                if not str(each.object_name).endswith("/")  # a folder, as consoles make them
            ]

    def read_checksums(self, wanted: RemoteObject) -> Checksums:
        """Return the MD5 or SHA-256 of an object, where its ETag or another header is one."""
        if wanted in self._checksums:
            return self._checksums[wanted]
        with self._named():
            found = self._client.stat_object(self._bucket, wanted.key, extra_headers=dict(_WITH_CHECKSUMS))
        return _find_checksums(wanted, found.metadata or {})

    @contextmanager
    def read(self, wanted: RemoteObject, start: int, end: int) -> Iterator[Iterator[bytes]]:
        """Open a range of an object. Raises HoneError, TransientError, ChangedError."""
        # Not as a range: that answer has the checksums too, which saves a request for each small object.
        is_all = start == 0 and end == wanted.size
        condition = {"If-Match": wanted.validator} if wanted.validator else {}
        with self._named():
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
                yield yield_range(response, wanted, start, end)
            finally:
                response.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            with named_failures(self._location):
                yield
        except S3Error as error:
            raise self._explain(error) from error
        except (InvalidResponseError, ServerError) as error:
            status = int(getattr(error, "_code", 0) or getattr(error, "_status_code", 0))
            if is_transient(status):
                raise TransientError(f"status {status}") from error
            if status in (401, 403):
                raise refused(self._location, f"status {status}") from error
            raise self._no_store(f"answers with status {status}, and not as an S3 server does") from error
        except MinioException as error:
            raise TransientError(" ".join(str(error).split())) from error

    def _explain(self, error: S3Error) -> Exception:
        code, status = error.code or "", int(error.response.status)
        where = self._location.where
        if code == "PreconditionFailed":
            return ChangedError(f"{error.object_name or 'an object'} has another ETag than before")
        if code in ("NoSuchKey", "NoSuchVersion"):
            return ChangedError(f"{error.object_name or 'an object'} is gone")
        if code == "NoSuchBucket":
            return HoneError(self._location.missing, f"{where}, and there is no bucket {self._bucket}")
        if code in _REGION_CODES or "region" in (error.message or "").lower():
            return HoneError(
                INVALID_SPEC,
                f"{where}, and its bucket is not in region {self._region}: {code}: {error.message}",
                remedy=f"Set spec.{self._location.kind}.region to the bucket's region.",
            )
        if code in _TRANSIENT_CODES or is_transient(status):
            return TransientError(f"{code}, status {status}", read_wait(error.response.headers))
        if status in (401, 403):
            return refused(self._location, f"{code}: {error.message}")
        return self._no_store(f"answers {code}: {error.message}")

    def _no_store(self, answer: str) -> HoneError:
        return HoneError(
            INVALID_SPEC,
            f"{self._location.where}, and {self._location.endpoint or AWS} {answer}",
            remedy=f"Set spec.{self._location.kind}.endpoint to the URL of an S3 server.",
        )


def _describe(name: str, found: "object") -> RemoteObject:
    etag = str(getattr(found, "etag", "") or "").strip('"')
    key, size = str(getattr(found, "object_name", "")), int(getattr(found, "size", 0) or 0)
    return RemoteObject(name, key, size, f'"{etag}"' if etag else "", has_ranges=bool(etag))


def _find_checksums(wanted: RemoteObject, given: Mapping[str, str]) -> Checksums:
    """Return the digests that the headers of an answer about an object hold."""
    is_encrypted = given.get("x-amz-server-side-encryption", "AES256") != "AES256"
    etag = wanted.validator.strip('"')
    md5 = etag if _MD5.fullmatch(etag) and not is_encrypted else None
    sha256 = given.get("x-amz-checksum-sha256", "")
    is_of_all = "-" not in sha256 and given.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT"
    return Checksums(md5, b64decode(sha256).hex() if sha256 and is_of_all else None)


def _find_credentials(location: Location) -> Provider | None:
    """Return the Secret's credentials, else those of the environment. Raises HoneError InvalidSpec for missing keys."""
    if location.secret is not None:
        lacking = [name for name in (ACCESS_KEY, SECRET_KEY) if not location.secret.get(name)]
        if lacking:
            raise HoneError(
                INVALID_SPEC,
                f"{location.where}, and its Secret has no {' and no '.join(lacking)}",
                remedy=f"Give it the keys {ACCESS_KEY} and {SECRET_KEY}.",
            )
        session = location.secret.get(SESSION_TOKEN)
        return StaticProvider(location.secret[ACCESS_KEY], location.secret[SECRET_KEY], session)
    providers: list[Provider] = [EnvAWSProvider(), AWSConfigProvider(profile=os.environ.get("AWS_PROFILE"))]
    if any(name in os.environ for name in _IDENTITY):
        providers.append(IamAwsProvider())
    chain = ChainedProvider(providers)
    try:
        chain.retrieve()
    except ValueError:  # no provider has any
        return None
    return chain
