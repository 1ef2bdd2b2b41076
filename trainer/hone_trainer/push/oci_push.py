"""Send files to an OCI registry as an artifact of ModelPack, and return its digest.

Blobs that the repository has are not sent again, and the manifest is written last: a push that was interrupted
continues with the files that are missing, and a push that is repeated sends nothing. A blob that was cut begins again.
Memory does not depend on the size of the files. In: files with their digests. Out: the digest, which is that of the
manifest and depends on the files, their names, the model's name and the annotations alone.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hone_api.reasons import DESTINATION_OCCUPIED, STORE_UNREACHABLE, HoneError

from hone_trainer.modelpack.artifact import MANIFEST_TYPE, BuiltArtifact, PackedFile, build_artifact
from hone_trainer.progress.meter import Meter
from hone_trainer.remote.oci_registry import Body, Registry
from hone_trainer.remote.transfers import StoppedError, Transfers

_BLOCK_BYTES = 1024**2
# Raises HoneError where a manifest, or its absence, must not be replaced.
Check = Callable[[bytes | None], None]


def _allow_any(held: bytes | None) -> None:
    """Allow that any manifest is replaced."""


@dataclass
class ArtifactPusher(Transfers):
    """Pushes files to the artifact of its location, whose URI has a tag. `name` is the model's.

    `check` is called with what the tag holds, before the upload and each time right before it is replaced.
    """

    note: Callable[[str], None]
    name: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    check: Check = _allow_any
    _meter: Meter = field(init=False, repr=False)

    def push(self, files: Mapping[str, Path], digests: Mapping[str, str] | None = None) -> str:
        """Send the files, by name, and return the digest of the artifact.

        `digests` are SHA-256 in hex that are already known, by name; the registry compares all of them with what it
        receives.
        Raises HoneError StoreUnauthorized, StoreUnreachable, InvalidSpec and the location's `missing`, OSError.
        """
        registry = Registry(self.location, can_push=True)
        known = digests or {}
        packed = [
            PackedFile(name, path.stat().st_size, known.get(name) or _hash_file(path)) for name, path in files.items()
        ]
        built = build_artifact(packed, self.name, self.annotations)
        held = self.retry(registry.read_manifest)
        if held and held[1] == built.digest and self._has_all(registry, packed):
            self.note(f"{self.location.uri} is complete: {built.digest}")
            return built.digest
        self.check(held[0] if held else None)
        self._meter = Meter(sum(file.size for file in packed), 0, self.note, verb="uploaded")
        unique = {file.sha256: file for file in packed}.values()  # two files may have the same content
        self.run([partial(self._send, registry, file, files[file.name]) for file in unique])
        digest, size = built.config_digest, len(built.config)
        self._write_blob(registry, digest, size, lambda: [built.config])
        self.retry(partial(self._write_manifest, registry, built))
        if not self._has_all(registry, packed):
            raise HoneError(STORE_UNREACHABLE, f"{self.location.where}, and the registry lacks files that it had taken")
        self._refuse_replaced(registry, built)
        return built.digest

    def _write_manifest(self, registry: Registry, built: BuiltArtifact) -> None:
        """Write the manifest unless it is there. Another push may have moved the tag since the upload began.

        Registries know no condition for a write, so the tag is read right before it.
        """
        held = registry.read_manifest()
        if held and held[1] == built.digest:
            return
        self.check(held[0] if held else None)
        registry.write_manifest(built.manifest, MANIFEST_TYPE)

    def _refuse_replaced(self, registry: Registry, built: BuiltArtifact) -> None:
        """Raise HoneError where the tag no longer has the artifact that was written."""
        found = self.retry(registry.read_manifest)
        if found is None:
            text = f"{self.location.where}, and after the upload of {built.digest} the artifact is gone"
            raise HoneError(STORE_UNREACHABLE, text)
        if found[1] != built.digest:
            text = f"{self.location.where}, and another push has replaced {built.digest} there by {found[1]}"
            raise HoneError(
                DESTINATION_OCCUPIED, text, remedy="Let one job push to a tag, or name another tag or repository."
            )

    def _has_all(self, registry: Registry, packed: list[PackedFile]) -> bool:
        missing: list[PackedFile] = []

        def check(file: PackedFile) -> None:
            if not self.retry(partial(registry.has_blob, f"sha256:{file.sha256}", file.size)):
                missing.append(file)

        self.run([partial(check, file) for file in packed])
        return not missing

    def _send(self, registry: Registry, file: PackedFile, path: Path) -> None:
        digest = f"sha256:{file.sha256}"
        sent = 0

        def read() -> Iterator[bytes]:
            nonlocal sent
            self._meter.add(-sent)
            sent = 0
            with path.open("rb") as opened:
                while block := opened.read(_BLOCK_BYTES):
                    if self.is_stopped:
                        raise StoppedError
                    yield block
                    sent += len(block)
                    self._meter.add(len(block))

        self._write_blob(registry, digest, file.size, read)
        self._meter.count_present(file.size - sent)

    def _write_blob(self, registry: Registry, digest: str, size: int, body: Body) -> None:
        """Send a blob that is not there. Look before each try: an earlier one may have lost the answer alone."""

        def write() -> None:
            if not registry.has_blob(digest, size):
                registry.write_blob(digest, size, body)

        self.retry(write)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
