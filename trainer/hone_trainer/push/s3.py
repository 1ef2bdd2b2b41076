"""Push an artifact to a folder of an S3 bucket: in parallel, continued where an earlier push stopped, and verified.

Input is a `LocalArtifact`; output are the objects, `manifest.json` as the last one, so that a folder with a manifest is
complete unless another artifact is replacing it. Nothing is remembered here: objects that are complete, and parts of
those that are not, are found at the server and compared with the files. Memory does not depend on the sizes: each
thread holds one part.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hone_api import strictjson
from hone_api.artifacts.manifest import LARGEST_MANIFEST_BYTES, ArtifactManifest
from hone_api.byte_sizes import format_bytes
from hone_api.layout import MANIFEST
from hone_api.reasons import DESTINATION_OCCUPIED, STORE_UNREACHABLE, HoneError

from hone_trainer.progress.meter import Meter
from hone_trainer.push.artifact import LocalArtifact, LocalFile
from hone_trainer.push.plan import HeldFile, PushPlan, make_damage_error, plan_push, refuse_other_job
from hone_trainer.push.s3_store import BegunUpload, S3Destination, UploadedPart
from hone_trainer.remote.objects import ChangedError, TransientError
from hone_trainer.remote.transfers import StoppedError, Transfers

PART_BYTES = 16 * 1024**2
# S3 takes at most so many parts of an object.
MOST_PARTS = 10_000
# How often everything is uploaded whose content differs from the file's afterwards.
DAMAGED_ATTEMPTS = 3
# How often a push starts again because somebody else changed the folder meanwhile.
CHANGED_ATTEMPTS = 3
_MIB = 1024**2


@dataclass
class _Upload:
    """A file that is uploaded in parts, over `held`. `done` are the parts that the server has, by number."""

    file: LocalFile
    held: HeldFile | None
    begun: BegunUpload
    count: int
    done: dict[int, UploadedPart] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class S3Push(Transfers):
    """Pushes an artifact to one folder."""

    store: S3Destination
    note: Callable[[str], None]
    part_bytes: int = PART_BYTES
    # The MD5 digests of the parts of files, as far as they were needed.
    _digests: dict[str, list[bytes]] = field(default_factory=dict, kw_only=True, repr=False)
    # The ETags that the server gave to what was sent now.
    _written: dict[str, str] = field(default_factory=dict, kw_only=True, repr=False)

    def push(self, artifact: LocalArtifact) -> None:
        """Make the folder the artifact. Raises HoneError.

        Reasons: StoreUnauthorized, StoreUnreachable, DestinationMissing, DestinationOccupied, DestinationRefused,
        InvalidSpec.
        """
        changed = None
        for _ in range(CHANGED_ATTEMPTS):
            try:
                return self._push(artifact)
            except ChangedError as error:
                changed = error
                self.note(f"{self.location.uri} has changed ({error}): starting again")
        assert changed
        raise self._make_occupied(changed) from changed

    def _make_occupied(self, changed: ChangedError) -> HoneError:
        remedy = "Let one job alone push to this folder, and no other program write to it; then push again."
        return HoneError(DESTINATION_OCCUPIED, f"{self.location.where}, and {changed}", remedy=remedy)

    def _push(self, artifact: LocalArtifact) -> None:
        held = self.retry(self.store.list_held)
        before = self._read_manifest(held)
        earlier: list[str] = []
        if before:
            uri = self.location.name_field("uri")
            remedy = f"Name another folder in {uri}, or remove the artifact that is there."
            refuse_other_job(self.location.where, before, artifact.manifest, remedy=remedy)
            earlier = list(before.files)
        self._refuse_foreign(artifact, held, earlier)
        plan = self._compare(artifact.files, held, earlier)
        if before is None:  # what an interrupted push has left has the content of this artifact
            self._refuse_other_content(plan, held)
        self._meter = Meter(sum(file.size for file in artifact.files), 0, self.note, verb="uploaded")
        self._meter.count_present(sum(file.size for file in artifact.files) - plan.upload_bytes)
        if plan.remove:
            _require_same(MANIFEST, self.retry(self.store.list_held).get(MANIFEST), held.get(MANIFEST))
        for name in plan.remove:
            self.note(f"removing {name} of the artifact that is replaced")
            self.retry(partial(self.store.remove, name))
        verified = self._upload_until_complete(artifact.files, plan, held) if plan.upload else held
        self._drop_interrupted_uploads([file for file in artifact.files if file not in plan.upload])
        artifact.refuse_replaced()
        self._write_manifest(artifact, held.get(MANIFEST), verified, earlier)

    def _upload_until_complete(
        self, files: list[LocalFile], plan: PushPlan, held: dict[str, HeldFile]
    ) -> dict[str, HeldFile]:
        """Upload the plan's files, and return what the folder holds then, which has the content of all files.

        Raises HoneError StoreUnreachable for content that never arrives as it was sent, ChangedError.
        """
        for _ in range(DAMAGED_ATTEMPTS):
            self.note(f"uploading {len(plan.upload)} files, {format_bytes(plan.upload_bytes)}")
            self._upload(plan.upload, held)
            held = self.retry(self.store.list_held)
            plan = self._compare(files, held)
            if not plan.upload:
                return held
            for name in (file.name for file in plan.upload):
                if written := self._written.get(name):
                    found = held.get(name)
                    _require_same(name, found and found.digest, written)
        raise make_damage_error(STORE_UNREACHABLE, self.location.where, plan, DAMAGED_ATTEMPTS)

    def _require_files(
        self, artifact: LocalArtifact, verified: dict[str, HeldFile], now: dict[str, HeldFile], earlier: Sequence[str]
    ) -> None:
        """Raise ChangedError where an object is no longer the one that was verified, HoneError DestinationOccupied."""
        self._refuse_foreign(artifact, now, earlier)
        for file in artifact.files:
            _require_same(file.name, now.get(file.name), verified[file.name])

    def _compare(self, files: list[LocalFile], held: dict[str, HeldFile], earlier: Sequence[str] = ()) -> PushPlan:
        """Return what is missing. Files are read in parallel."""
        verdicts: dict[str, bool] = {}

        def judge(file: LocalFile, found: HeldFile) -> None:
            verdicts[file.name] = self._is_same(file, found)

        listed = [(file, held[file.name]) for file in files if file.name in held]
        self.run([partial(judge, file, found) for file, found in listed if file.size == found.size])
        return plan_push(files, held, lambda file, _: verdicts[file.name], earlier)

    def _is_same(self, file: LocalFile, held: HeldFile) -> bool:
        """Return whether an object of a file's size has its content: by its ETag, else by reading it.

        ETags of encrypted objects, and of those that another program uploaded in other parts, prove nothing, apart from
        the one that the server gave to the parts that this process has sent, each of which it has compared by a digest.
        """
        if held.digest and held.digest == self._written.get(file.name) and file.size > self._find_part_bytes(file):
            return True
        if held.digest == self._make_etag(file):
            return True
        wanted = self.store.describe(file.name, held)
        at = 0

        def compare() -> bool:
            nonlocal at
            with file.path.open("rb") as local, self.store.read(wanted, at, file.size) as blocks:
                local.seek(at)
                for block in blocks:
                    if self.is_stopped:
                        raise StoppedError
                    if local.read(len(block)) != block:
                        return False
                    at += len(block)
            if at < file.size:
                raise TransientError(f"the connection ended after {at} of {file.size} bytes")
            return True

        return self.retry(compare, lambda: at)

    def _refuse_foreign(self, artifact: LocalArtifact, held: dict[str, HeldFile], earlier: Sequence[str]) -> None:
        """Raise HoneError DestinationOccupied for objects that would be loaded with the artifact, and are not of it."""
        own = {*earlier, *(file.name for file in artifact.files)}
        folders = {name.partition("/")[0] for name in own}
        for name in sorted(held):
            if name.partition("/")[0] in folders and name not in own:
                found = f"{self.location.where}, and {name} there is not of an artifact of this job"
                raise HoneError(DESTINATION_OCCUPIED, found)

    def _refuse_other_content(self, plan: PushPlan, held: dict[str, HeldFile]) -> None:
        """Raise HoneError DestinationOccupied for objects that an upload would replace, and that no manifest lists."""
        for name in sorted(file.name for file in plan.upload if file.name in held):
            found = f"{self.location.where}, and {name} there has other content, and no {MANIFEST} shows whose it is"
            raise HoneError(DESTINATION_OCCUPIED, found)

    def _read_manifest(self, held: dict[str, HeldFile]) -> ArtifactManifest | None:
        """Return the manifest of the folder. Raises HoneError DestinationOccupied when it is none of Hone's."""
        found = held.get(MANIFEST)
        if found is None:
            return None
        try:
            if found.size > LARGEST_MANIFEST_BYTES:
                raise ValueError("it is too large")
            return ArtifactManifest.model_validate(strictjson.parse(self._read_small(found)))
        except ValueError:
            text = f"{self.location.where}, and {MANIFEST} there is not that of an artifact"
            raise HoneError(DESTINATION_OCCUPIED, text) from None

    def _read_small(self, held: HeldFile) -> bytes:
        def read() -> bytes:
            with self.store.read(self.store.describe(MANIFEST, held), 0, held.size) as blocks:
                return b"".join(blocks)

        return self.retry(read)

    def _write_manifest(
        self,
        artifact: LocalArtifact,
        expected: HeldFile | None,
        verified: dict[str, HeldFile],
        earlier: Sequence[str],
    ) -> None:
        """Write manifest.json over the expected one, unless it is there, and look at the full artifact again.

        Another push to the folder may have begun since it was listed; of two, one at most finds all its files here.
        """
        now = self.retry(self.store.list_held)
        _require_same(MANIFEST, now.get(MANIFEST), expected)
        self._require_files(artifact, verified, now, earlier)
        if expected and self._read_small(expected) == artifact.content:
            self.note(f"{self.location.uri} is complete")
            return
        size, digest = len(artifact.content), hashlib.sha256(artifact.content).hexdigest()
        file = LocalFile(MANIFEST, artifact.root / MANIFEST, size, digest)
        self._write(file, partial(self.store.put, MANIFEST, artifact.content, expected))
        now = self.retry(self.store.list_held)
        found = now.get(MANIFEST)
        if found is None or self._read_small(found) != artifact.content:
            raise ChangedError(f"{MANIFEST} is not the one that was written")
        try:
            self._require_files(artifact, verified, now, earlier)
        except ChangedError as error:  # the other push may have lost files without notice
            raise self._make_occupied(error) from error

    def _write(self, file: LocalFile, write: Callable[[], str]) -> bool:
        """Write an object, and return whether it was written now.

        One that is there already with this content was written by a try whose answer was lost. Raises ChangedError.
        """
        try:
            self._written[file.name] = self.retry(write)
        except ChangedError:
            held = self.retry(partial(self.store.find, file.name))
            if held.size != file.size or not self._is_same(file, held):
                raise
            return False
        return True

    def _upload(self, files: list[LocalFile], held: dict[str, HeldFile]) -> None:
        large = [file for file in files if file.size > self._find_part_bytes(file)]
        begun: dict[str, list[str]] = self._find_uploads() if large else {}
        uploads: list[_Upload] = []
        self.run([partial(self._begin, file, held.get(file.name), begun.get(file.name, []), uploads) for file in large])
        tasks: list[Callable[[], None]] = [
            partial(self._put_file, file, held.get(file.name)) for file in files if file not in large
        ]
        for upload in uploads:
            missing = [number for number in range(1, upload.count + 1) if number not in upload.done]
            if missing:
                tasks += [partial(self._put_part, upload, number) for number in missing]
            else:
                tasks.append(partial(self._complete, upload))
        self.run(tasks)
        for upload in uploads:
            for other in begun.get(upload.file.name, []):
                if other != upload.begun.id:
                    self.store.abort_upload(upload.file.name, other)

    def _drop_interrupted_uploads(self, files: list[LocalFile]) -> None:
        """Drop the uploads of files that are complete: a push that was killed may have left several of one file."""
        large = [file.name for file in files if file.size > self._find_part_bytes(file)]
        begun = self._find_uploads() if large else {}
        for name in large:
            for upload_id in begun.get(name, []):
                self.store.abort_upload(name, upload_id)

    def _find_uploads(self) -> dict[str, list[str]]:
        """Return uploads that were interrupted; none where the server or its rights don't allow to list them."""
        try:
            return self.retry(self.store.list_uploads)
        except HoneError as error:
            if error.reason is STORE_UNREACHABLE:
                raise
            self.note(f"warning: interrupted uploads can't be continued: {error.message}")
            return {}

    def _begin(self, file: LocalFile, held: HeldFile | None, begun: list[str], uploads: list[_Upload]) -> None:
        """Continue an upload that has parts of this file's content, or begin another."""
        part_bytes = self._find_part_bytes(file)
        count = -(-file.size // part_bytes)
        for upload_id in begun:
            done: dict[int, UploadedPart] = {}
            listed = self.retry(partial(self.store.list_parts, file.name, upload_id))
            has_checksums = any(part.crc32 for part in listed.values())
            for number, part in listed.items():
                is_complete = number <= count and part.size == min(part_bytes, file.size - (number - 1) * part_bytes)
                if is_complete and part.etag == self._digest_parts(file)[number - 1].hex():
                    done[number] = part
            if done:
                self._meter.count_present(sum(part.size for part in done.values()))
                uploads.append(_Upload(file, held, BegunUpload(upload_id, has_checksums), count, done))
                return
        uploads.append(_Upload(file, held, self.retry(partial(self.store.begin_upload, file.name)), count))

    def _put_file(self, file: LocalFile, held: HeldFile | None) -> None:
        self._refuse_stopped()
        content = _read(file.path, 0, file.size)
        self._digests[file.name] = [hashlib.md5(content, usedforsecurity=False).digest()]
        self._write(file, partial(self.store.put, file.name, content, held))
        self._meter.add(file.size)

    def _put_part(self, upload: _Upload, number: int) -> None:
        self._refuse_stopped()
        part_bytes = self._find_part_bytes(upload.file)
        content = _read(upload.file.path, (number - 1) * part_bytes, part_bytes)
        part = self.retry(partial(self.store.put_part, upload.file.name, upload.begun, number, content))
        self._meter.add(len(content))
        with upload.lock:
            upload.done[number] = part
            is_last = len(upload.done) == upload.count
        if is_last:
            self._complete(upload)

    def _complete(self, upload: _Upload) -> None:
        """Make the object of the parts. Where it is there, or another, the parts are dropped: they would be kept."""
        parts, name = [upload.done[number] for number in sorted(upload.done)], upload.file.name
        is_written = False
        try:
            write = partial(self.store.complete_upload, name, upload.begun.id, parts, upload.held)
            is_written = self._write(upload.file, write)
        finally:
            if not is_written:
                self.store.abort_upload(name, upload.begun.id)

    def _refuse_stopped(self) -> None:
        if self.is_stopped:
            raise StoppedError

    def _find_part_bytes(self, file: LocalFile) -> int:
        """Return the bytes of each part of a file but the last one."""
        needed = -(-file.size // MOST_PARTS)
        return max(self.part_bytes, -(-needed // _MIB) * _MIB)

    def _digest_parts(self, file: LocalFile) -> list[bytes]:
        """Return the MD5 digests of a file's parts."""
        if file.name not in self._digests:
            part_bytes = self._find_part_bytes(file)
            self._digests[file.name] = [
                hashlib.md5(_read(file.path, at, part_bytes), usedforsecurity=False).digest()
                for at in range(0, max(file.size, 1), part_bytes)
            ]
        return self._digests[file.name]

    def _make_etag(self, file: LocalFile) -> str:
        """Return the ETag that S3 gives to a file that is uploaded in these parts, without encryption by a key."""
        digests = self._digest_parts(file)
        if len(digests) == 1:
            return digests[0].hex()
        return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _read(path: Path, start: int, size: int) -> bytes:
    """Return bytes of a file, fewer where it ends."""
    with path.open("rb") as file:
        return os.pread(file.fileno(), size, start)


def _require_same(name: str, found: object, expected: object) -> None:
    """Raise ChangedError where an object of the folder is no longer what it was: another push may have begun."""
    if found != expected:
        raise ChangedError(f"{name} was written or removed by another program")
