"""The files of an artifact in an OCI registry, which a URI names by tag or digest.

Layers are listed as objects whose validator is their digest, so that the revision of a source changes with its content
and not with its tag. Layers that are archives are unpacked by `unpack_archives` once all are downloaded.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hone_api.io.durable_files import flush_to_disk
from hone_api.reasons import HoneError

from hone_trainer.modelpack.artifact import Layer, UnreadableArtifactError, find_manifest_in_index, parse_manifest
from hone_trainer.modelpack.unpacking import unpack
from hone_trainer.remote.connections import translate_failures, yield_range
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import ChangedError, Checksums, RemoteObject
from hone_trainer.remote.oci_registry import Registry

UNPACKED = "unpacked"


class OciStore:
    """The layers of the artifact at a URI `oci://REGISTRY/REPOSITORY:TAG` or `…@sha256:DIGEST`."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._registry = Registry(location)
        self._digest = ""

    def list_objects(self) -> list[RemoteObject]:
        """Return the files and archives. Raises HoneError ModelInvalid, StoreUnauthorized, …, TransientError."""
        found = self._registry.read_manifest()
        if found is None:
            return []
        content, self._digest = found
        try:
            if inner := find_manifest_in_index(content):
                if (chosen := self._registry.read_manifest(inner)) is None:
                    raise self._make_lost_error(f"manifest {inner} of its index")
                content, _ = chosen
            layers = parse_manifest(content)
        except UnreadableArtifactError as error:
            repository = self._location.uri.partition("@")[0].removesuffix(f":{self._registry.reference.tag}")
            remedy = (
                f"Check {self._location.name_field('uri')}: it must name an artifact with files in a registry, as "
                f"oras, modctl and Hone push it, and not a page or an image. One of several in an index is "
                f"{repository}@DIGEST."
            )
            raise HoneError(self._location.invalid, f"{self._location.where}, which {error}", remedy=remedy) from None
        has_ranges = self._probe_ranges(max(layers, key=lambda layer: layer.size)) if layers else False
        return [_describe(layer, has_ranges) for layer in dict.fromkeys(layers)]

    def read_checksums(self, wanted: RemoteObject) -> Checksums:
        """Return the digest of a layer."""
        return Checksums(sha256=wanted.key.removeprefix("sha256:"))

    @contextmanager
    def read(self, wanted: RemoteObject, start: int, end: int) -> Iterator[Iterator[bytes]]:
        """Open a range of a layer. Raises HoneError, TransientError, ChangedError."""
        with self._registry.open_blob(wanted.key, start, end) as response:
            if response.status in (404, 416):
                self._refuse_lost(wanted)
                raise ChangedError(f"{wanted.name} is gone")
            # A bucket behind the registry has ETags of its own.
            yield self._yield_named(yield_range(response, replace(wanted, validator=""), start, end))

    def _yield_named(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield blocks. Failures to read them get their name; those of the consumer are not touched."""
        with translate_failures(self._location):
            yield from blocks

    def _refuse_lost(self, wanted: RemoteObject) -> None:
        """Raise HoneError for a blob that is gone while the manifest that names it is still there."""
        found = self._registry.read_manifest()
        if found and found[1] == self._digest:
            raise self._make_lost_error(f"blob {wanted.key} of {wanted.name}")

    def _make_lost_error(self, what: str) -> HoneError:
        return HoneError(
            self._location.invalid,
            f"{self._location.where}, and the registry has its manifest and has lost {what}",
            remedy="Push the artifact again. A garbage collection while a push is going on can remove blobs.",
        )

    def _probe_ranges(self, layer: Layer) -> bool:
        """Return whether the registry sends ranges of blobs: it need not."""
        if not layer.size:
            return False
        with self._registry.open_blob(layer.digest, 0, 1) as response:
            return response.status == 206


def unpack_archives(location: Location, objects: list[RemoteObject], files: Path, folder: Path) -> Path:
    """Unpack the archives among downloaded objects, and return the folder with all files.

    `files` is the folder of the download, and `folder` becomes the one that is returned. Files are moved only once all
    archives are unpacked, so that a killed process has lost nothing.
    Raises HoneError ModelInvalid or DatasetInvalid, OSError.
    """
    archives = [found for found in objects if found.packing != "file"]
    if not archives:
        return files
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        for archive in archives:
            unpack(files / archive.name, archive.packing, folder)
        for found in objects:
            if found.packing == "file":
                target = folder / found.name
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    raise UnreadableArtifactError(f"has the file {found.name!r} twice")
                os.rename(files / found.name, target)
    except (UnreadableArtifactError, NotADirectoryError, FileExistsError) as error:
        raise HoneError(location.invalid, f"{location.where}, which {error}") from error
    flush_to_disk(folder)
    return folder


def _describe(layer: Layer, has_ranges: bool) -> RemoteObject:
    """Return a layer as an object. An archive without a name gets one that no file in it can have by accident."""
    name = layer.name or f"layer-{layer.digest.removeprefix('sha256:')[:12]}.{layer.packing}"
    return RemoteObject(name, layer.digest, layer.size, layer.digest, has_ranges, layer.packing, bool(layer.name))
