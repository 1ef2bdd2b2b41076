"""Requests that write to a bucket: objects, uploads in parts, and the parts of uploads that were interrupted.

`s3` decides which of them are made. Failures have the names of `remote.s3`, of which this is the writing half.

minio has no public method that continues an upload, or that sends a part with its MD5. This module alone uses the
undocumented methods under the public ones, MULTIPART_METHODS; a test compares their parameters.
"""

from base64 import b64encode
from typing import NamedTuple
from xml.etree import ElementTree

from hone_api.reasons import HoneError
from minio.datatypes import Part
from minio.error import S3Error

from hone_trainer.push.plan import HeldFile
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import ChangedError, RemoteObject, TransientError
from hone_trainer.remote.s3 import S3Store

# Headers and queries, as the client takes them.
Query = dict[str, str | list[str] | tuple[str]]
# By name, the parameters that Hone gives or that come before them.
MULTIPART_METHODS = {
    "_execute": "method bucket_name object_name body headers query_params",
    "_list_multipart_uploads": "bucket_name delimiter encoding_type key_marker max_uploads prefix",
    "_create_multipart_upload": "bucket_name object_name headers",
    "_complete_multipart_upload": "bucket_name object_name upload_id parts",
    "_abort_multipart_upload": "bucket_name object_name upload_id",
}
# An upload that another process has completed or aborted, or whose parts it has replaced.
_LOST_UPLOAD = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder"}
_DAMAGED_ON_THE_WAY = {"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"}


class UploadedPart(NamedTuple):
    """A part that the server has of an upload."""

    size: int
    etag: str


class S3Destination(S3Store):
    """The folder of a bucket that an artifact is written to. Names are relative to it."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._prefix = f"{self._key.rstrip('/')}/" if self._key.strip("/") else ""

    def list_held(self) -> dict[str, HeldFile]:
        """Return the objects of the folder by name. Raises HoneError, TransientError."""
        found = self._list(self._prefix)
        return {each.name: HeldFile(each.size, each.validator.strip('"')) for each in found}

    def describe(self, name: str, held: HeldFile) -> RemoteObject:
        """Return an object of the folder as `read` takes it."""
        return RemoteObject(name, self._prefix + name, held.size, f'"{held.digest}"' if held.digest else "")

    def put(self, name: str, content: bytes, md5: bytes) -> None:
        """Write an object. Raises HoneError, TransientError, ChangedError."""
        with self._translate_failures():
            self._client._execute("PUT", self._bucket, self._prefix + name, content, _make_headers(md5))

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._translate_failures():
            self._client.remove_object(self._bucket, self._prefix + name)

    def list_uploads(self) -> dict[str, list[str]]:
        """Return the ids of uploads that were begun and not completed, the newest first, by name."""
        with self._translate_failures():
            found = self._client._list_multipart_uploads(self._bucket, prefix=self._prefix).uploads
        uploads: dict[str, list[str]] = {}
        for each in sorted(found, key=lambda each: str(each.initiated_time), reverse=True):
            uploads.setdefault(str(each.object_name).removeprefix(self._prefix), []).append(str(each.upload_id))
        return uploads

    def list_parts(self, name: str, upload: str) -> dict[int, UploadedPart]:
        """Return the parts that the server has of an upload, by number."""
        found: dict[int, UploadedPart] = {}
        marker = "0"
        while True:
            query: Query = {"uploadId": upload, "part-number-marker": marker}
            with self._translate_failures():
                answer = self._client._execute("GET", self._bucket, self._prefix + name, query_params=query)
                tree = ElementTree.fromstring(answer.data)
                for part in tree.iterfind("{*}Part"):
                    etag = _find_text(part, "ETag").strip('"')
                    found[int(_find_text(part, "PartNumber"))] = UploadedPart(int(_find_text(part, "Size")), etag)
                following = _find_text(tree, "NextPartNumberMarker")
            if _find_text(tree, "IsTruncated") != "true" or following == marker:
                return found
            marker = following

    def begin_upload(self, name: str) -> str:
        """Begin an upload in parts, and return its id."""
        with self._translate_failures():
            return self._client._create_multipart_upload(self._bucket, self._prefix + name, {})

    def put_part(self, name: str, upload: str, number: int, content: bytes, md5: bytes) -> None:
        """Send a part of an upload."""
        query: Query = {"partNumber": str(number), "uploadId": upload}
        with self._translate_failures():
            self._client._execute("PUT", self._bucket, self._prefix + name, content, _make_headers(md5), query)

    def complete_upload(self, name: str, upload: str, parts: list[UploadedPart]) -> None:
        """Make an object of the parts of an upload, which are numbered from 1."""
        numbered = [Part(number, part.etag) for number, part in enumerate(parts, 1)]
        with self._translate_failures():
            self._client._complete_multipart_upload(self._bucket, self._prefix + name, upload, numbered)

    def abort_upload(self, name: str, upload: str) -> None:
        """Drop the parts of an upload. Where that is refused, they stay."""
        try:
            with self._translate_failures():
                self._client._abort_multipart_upload(self._bucket, self._prefix + name, upload)
        except (HoneError, TransientError, ChangedError):
            return

    def _explain(self, error: S3Error) -> Exception:
        if error.code in _LOST_UPLOAD:
            return ChangedError(f"the upload of {error.object_name} was completed or dropped by another process")
        if error.code in _DAMAGED_ON_THE_WAY:
            return TransientError(f"{error.code}: {error.message}")
        return super()._explain(error)


def _make_headers(md5: bytes) -> Query:
    return {"Content-MD5": b64encode(md5).decode(), "Content-Type": "application/octet-stream"}


def _find_text(tree: ElementTree.Element, name: str) -> str:
    return tree.findtext(f"{{*}}{name}") or ""
