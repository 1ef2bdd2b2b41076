"""Requests that write to a bucket: objects, uploads in parts, and the parts of uploads that were interrupted.

`s3` decides which of them are made. Failures have the names of `remote.s3`, of which this is the writing half.

An object is only written over what was listed there, where the server knows conditions for writes: AWS, MinIO and
others do. minio proves what it sends by a digest: of HTTP by the SHA-256 that is signed, of HTTPS by its MD5. Parts
also get a CRC-32, as boto3's do, where the server answers that it checks them. Without one, servers compute another
checksum, which may take them longer.

minio has no public method that continues an upload, or that writes under a condition. This module alone uses the
undocumented methods under the public ones, MULTIPART_METHODS; a test compares their parameters.
"""

import hashlib
import zlib
from base64 import b64encode
from typing import NamedTuple
from xml.etree import ElementTree

import urllib3
from hone_api.reasons import HoneError
from minio.error import S3Error

from hone_trainer.push.plan import HeldFile
from hone_trainer.remote.connections import read_wait
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import ChangedError, RemoteObject, TransientError
from hone_trainer.remote.refusals import Answer, Verdict, judge_answer, make_destination_error
from hone_trainer.remote.s3 import S3Store

# Headers and queries, as the client takes them.
Query = dict[str, str | list[str] | tuple[str]]
# By name, the parameters that Hone gives or that come before them.
MULTIPART_METHODS = {
    "_execute": "method bucket_name object_name body headers query_params",
    "_list_multipart_uploads": "bucket_name delimiter encoding_type key_marker max_uploads prefix",
    "_abort_multipart_upload": "bucket_name object_name upload_id",
}
# An upload that another process has completed or aborted, or whose parts it has replaced.
_LOST_UPLOAD = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder"}
_DAMAGED_ON_THE_WAY = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"}
# Another program writes the same object now, or has removed it.
_CONFLICTS = {"ConditionalRequestConflict", "PreconditionFailed", "NoSuchKey", "NoSuchVersion", "InvalidRange"}
# What servers answer that know no conditions for writes, or no checksums. Most of them ignore such headers.
_UNKNOWN_HEADER = {"NotImplemented", "InvalidArgument", "InvalidRequest", "UnsupportedArgument"}
_WRITE_RIGHT = "s3:PutObject"
_CHECKSUM_HEADER, _CHECKSUM_ALGORITHM = "x-amz-checksum-algorithm", "CRC32"


class BegunUpload(NamedTuple):
    """An upload in parts. `has_checksums`: the server compares each part with a CRC-32, and wants all of them."""

    id: str
    has_checksums: bool


class UploadedPart(NamedTuple):
    """A part that the server has of an upload. `crc32` is in base64, and empty in an upload without checksums."""

    size: int
    etag: str
    crc32: str = ""


class S3Destination(S3Store):
    """The folder of a bucket that an artifact is written to. Names are relative to it."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._has_conditions = self._has_checksums = True
        self._prefix = f"{self._key.rstrip('/')}/" if self._key.strip("/") else ""

    def list_held(self) -> dict[str, HeldFile]:
        """Return the objects of the folder by name. Raises HoneError, TransientError."""
        found = self._list(self._prefix)
        return {each.name: HeldFile(each.size, each.validator.strip('"')) for each in found}

    def describe(self, name: str, held: HeldFile) -> RemoteObject:
        """Return an object of the folder as `read` takes it."""
        return RemoteObject(name, self._prefix + name, held.size, f'"{held.digest}"' if held.digest else "")

    def find(self, name: str) -> HeldFile:
        """Return an object. Raises HoneError, TransientError, ChangedError where it is gone."""
        with self._translate_failures():
            found = self._client.stat_object(self._bucket, self._prefix + name)
        return HeldFile(int(found.size or 0), str(found.etag or "").strip('"'))

    def put(self, name: str, content: bytes, held: HeldFile | None) -> str:
        """Write an object over the one that was listed there, if one was, and return its ETag.

        Raises HoneError, TransientError, and ChangedError where there is another by now.
        """
        with self._translate_failures(_WRITE_RIGHT):
            return _read_etag(self._execute_over(held, "PUT", name, content), content)

    def _execute_over(
        self, held: HeldFile | None, method: str, name: str, content: bytes, query: Query | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Send a request that writes an object, on the condition that the bucket has what was listed."""
        condition = {"If-Match": f'"{held.digest}"'} if held else {"If-None-Match": "*"}
        key, sent = self._prefix + name, {"Content-Type": "application/octet-stream"}
        if self._has_conditions and (held is None or held.digest):
            try:
                return self._client._execute(method, self._bucket, key, content, {**sent, **condition}, query)
            except S3Error as error:
                if not _is_unknown_header(error):
                    raise
            answer = self._client._execute(method, self._bucket, key, content, {**sent}, query)
            self._has_conditions = False
            return answer
        return self._client._execute(method, self._bucket, key, content, {**sent}, query)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._translate_failures("s3:DeleteObject"):
            self._client.remove_object(self._bucket, self._prefix + name)

    def list_uploads(self) -> dict[str, list[str]]:
        """Return the ids of uploads that were begun and not completed, the newest first, by name."""
        with self._translate_failures("s3:ListBucketMultipartUploads"):
            found = self._client._list_multipart_uploads(self._bucket, prefix=self._prefix).uploads
        uploads: dict[str, list[str]] = {}
        for each in sorted(found, key=lambda each: str(each.initiated_time), reverse=True):
            uploads.setdefault(str(each.object_name).removeprefix(self._prefix), []).append(str(each.upload_id))
        return uploads

    def list_parts(self, name: str, upload_id: str) -> dict[int, UploadedPart]:
        """Return the parts that the server has of an upload, by number."""
        found: dict[int, UploadedPart] = {}
        marker = "0"
        while True:
            query: Query = {"uploadId": upload_id, "part-number-marker": marker}
            with self._translate_failures("s3:ListMultipartUploadParts"):
                answer = self._client._execute("GET", self._bucket, self._prefix + name, query_params=query)
                tree = ElementTree.fromstring(answer.data)
                for part in tree.iterfind("{*}Part"):
                    etag = _find_text(part, "ETag").strip('"')
                    size, crc32 = int(_find_text(part, "Size")), _find_text(part, "ChecksumCRC32")
                    found[int(_find_text(part, "PartNumber"))] = UploadedPart(size, etag, crc32)
                following = _find_text(tree, "NextPartNumberMarker")
            if _find_text(tree, "IsTruncated") != "true" or following == marker:
                return found
            marker = following

    def begin_upload(self, name: str) -> BegunUpload:
        """Begin an upload in parts."""
        with self._translate_failures(_WRITE_RIGHT):
            answer = self._execute_begin(name)
            upload_id = _find_text(ElementTree.fromstring(answer.data), "UploadId")
            if not upload_id:
                raise ValueError("the answer has no UploadId")
        return BegunUpload(upload_id, answer.headers.get(_CHECKSUM_HEADER, "").upper() == _CHECKSUM_ALGORITHM)

    def _execute_begin(self, name: str) -> urllib3.BaseHTTPResponse:
        """Send the request that begins an upload, with checksums where the server accepts that."""
        key, sent = self._prefix + name, {"Content-Type": "application/octet-stream"}
        query: Query = {"uploads": ""}
        if self._has_checksums:
            headers: Query = {**sent, _CHECKSUM_HEADER: _CHECKSUM_ALGORITHM}
            try:
                return self._client._execute("POST", self._bucket, key, headers=headers, query_params=query)
            except S3Error as error:
                if not _is_unknown_header(error):
                    raise
        answer = self._client._execute("POST", self._bucket, key, headers={**sent}, query_params=query)
        self._has_checksums = False
        return answer

    def put_part(self, name: str, upload: BegunUpload, number: int, content: bytes) -> UploadedPart:
        """Send a part of an upload. Its ETag is its MD5 at some servers and buckets only."""
        query: Query = {"partNumber": str(number), "uploadId": upload.id}
        sent: Query = {"Content-Type": "application/octet-stream"}
        crc32 = ""
        if upload.has_checksums:
            crc32 = b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
            sent["x-amz-checksum-crc32"] = crc32
        with self._translate_failures(_WRITE_RIGHT):
            answer = self._client._execute("PUT", self._bucket, self._prefix + name, content, sent, query)
            return UploadedPart(len(content), _read_etag(answer, content), crc32)

    def complete_upload(self, name: str, upload_id: str, parts: list[UploadedPart], held: HeldFile | None) -> str:
        """Make an object of the parts of an upload, numbered from 1, as `put` does. Return its ETag."""
        root = ElementTree.Element("CompleteMultipartUpload")
        for number, part in enumerate(parts, 1):
            entry = ElementTree.SubElement(root, "Part")
            ElementTree.SubElement(entry, "PartNumber").text = str(number)
            ElementTree.SubElement(entry, "ETag").text = f'"{part.etag}"'
            if part.crc32:
                ElementTree.SubElement(entry, "ChecksumCRC32").text = part.crc32
        with self._translate_failures(_WRITE_RIGHT):
            answer = self._execute_over(held, "POST", name, ElementTree.tostring(root), {"uploadId": upload_id})
            tree = ElementTree.fromstring(answer.data)
            if tree.tag.rpartition("}")[2] == "Error":  # S3 begins its answer before the object is made
                raise S3Error.fromxml(answer)
            return _find_text(tree, "ETag").strip('"')

    def abort_upload(self, name: str, upload_id: str) -> None:
        """Drop the parts of an upload. Where that is refused, they stay."""
        try:
            with self._translate_failures("s3:AbortMultipartUpload"):
                self._client._abort_multipart_upload(self._bucket, self._prefix + name, upload_id)
        except (HoneError, TransientError, ChangedError):
            return

    def _explain(self, error: S3Error, right: str) -> Exception:
        code = error.code or ""
        name = error.object_name or (error.resource or "").rpartition("/")[2] or "an object"
        if code in _LOST_UPLOAD:
            return ChangedError(f"the upload of {name} was completed or dropped by another process: {code}")
        if code in _CONFLICTS:
            return ChangedError(f"{name} was written or removed by another program: {code}")
        answer = Answer(int(error.response.status), code, self._read_message(error))
        if code in _DAMAGED_ON_THE_WAY:
            return TransientError(str(answer))
        return self._explain_write(answer, read_wait(error.response.headers)) or super()._explain(error, right)

    def _explain_page(self, answer: Answer, right: str) -> Exception:
        return self._explain_write(answer) or super()._explain_page(answer, right)

    def _explain_other(self, answer: Answer) -> HoneError:
        return self._refuse_artifact(answer, judge_answer(answer))

    def _explain_write(self, answer: Answer, wait_seconds: float = 0.0) -> Exception | None:
        """Return the failure that only an answer to a write has; None for others."""
        verdict = judge_answer(answer)
        if verdict is Verdict.PASSING:
            return TransientError(str(answer), wait_seconds)
        is_known_to_reads = verdict in (Verdict.UNAUTHORIZED, Verdict.MISSING, Verdict.REFUSED) and answer.status < 500
        if not is_known_to_reads:
            return self._refuse_artifact(answer, verdict)
        return None

    def _advise(self, right: str, message: str) -> str:
        return f"{super()._advise(right, message)} A push lists, reads, writes and deletes objects."

    def _make_refusal(self, answer: str, remedy: str | None = None) -> HoneError:
        uri, secret = map(self._location.name_field, ("uri", "secret"))
        own = f"Give credentials that may list, read, write and delete the objects of {uri}, in {secret}."
        return super()._make_refusal(answer, remedy or own)

    def _refuse_artifact(self, answer: Answer, verdict: Verdict) -> HoneError:
        found = f"{self._location.where}, and {self._server} refuses the artifact: {answer}"
        return make_destination_error(found, verdict, self._location.name_field("uri"))


def _read_etag(answer: urllib3.BaseHTTPResponse, content: bytes) -> str:
    """Return the ETag that a server has given to content; its MD5 where it gives none."""
    etag = answer.headers.get("ETag", "").strip('"')
    return etag or hashlib.md5(content, usedforsecurity=False).hexdigest()


def _is_unknown_header(error: S3Error) -> bool:
    """Return whether a server may have refused a request for a header that it does not know."""
    return error.code in _UNKNOWN_HEADER or error.response.status == 501


def _find_text(tree: ElementTree.Element, name: str) -> str:
    return tree.findtext(f"{{*}}{name}") or ""
