"""The manifest of an artifact in a registry, as CNCF's ModelPack defines it: parsing and building. Pure.

Read are the artifacts of ModelPack's own tools (modctl), of oras, and of Hone: a layer is one file, or an archive of
files. Written is one layer for each file, uncompressed and without an archive, so that a file of the artifact is a blob
of the registry: it is resumed by range, and its digest is that of the file. Nothing in what is written depends on the
time or the machine: the same files always give the same digest. `remote.oci_store` pulls, `push.oci_push` pushes.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
FILE_PATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
# The annotation of modctl before the specification came to CNCF's own name.
_FILE_PATHS = (FILE_PATH, "org.cnai.model.filepath")
# oras sets it for a folder, which it packs; its files have the media type of an archive and are none.
_ORAS_UNPACK = "io.deis.oras.content.unpack"
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
# The layer of an artifact without files, such as those that `oras attach` makes.
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
# So many manifests of an index are named in a message.
_MOST_SHOWN = 8
_NO_MANIFEST = "has a manifest that is none of an OCI artifact"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_DATASETS = (".jsonl", ".parquet", ".csv", ".arrow")
_DOCUMENTS = (".md", ".pdf", ".html")
# A manifest describes files: a hundred thousand would fit.
LARGEST_MANIFEST_BYTES = 32 * 2**20

Packing = Literal["file", "tar", "tar+gzip", "tar+zstd"]


class UnreadableArtifactError(Exception):
    """A manifest can't be used; the text continues a message that names the artifact."""


class Layer(NamedTuple):
    """A blob. `name` is the path of its file; an archive without an annotation has none."""

    digest: str
    size: int
    name: str
    packing: Packing


class PackedFile(NamedTuple):
    """A file that becomes a layer. `sha256` is in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class BuiltArtifact:
    """What is pushed after the files: the configuration, and the manifest that names all."""

    config: bytes
    manifest: bytes

    @property
    def config_digest(self) -> str:
        """The digest of the configuration's blob."""
        return compute_digest(self.config)

    @property
    def digest(self) -> str:
        """The digest of the artifact, which a URI can name."""
        return compute_digest(self.manifest)


def compute_digest(content: bytes) -> str:
    """Return the digest of a blob as registries write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def parse_manifest(content: bytes) -> list[Layer]:
    """Return the layers of an artifact. Raises UnreadableArtifactError."""
    try:
        document = json.loads(content)
        found = [_parse_layer(layer) for layer in document["layers"] if layer["mediaType"] != _EMPTY_TYPE]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnreadableArtifactError(_NO_MANIFEST) from None
    if any(layer.packing != "file" and not layer.name for layer in found) and _is_image(document):
        raise UnreadableArtifactError("is an image of a container, and no artifact with files")
    return found


def find_manifest_in_index(content: bytes) -> str | None:
    """Return the digest of the one artifact in an index; None for a manifest, and for what is neither.

    buildx and oras push an index also for a single manifest, next to which may stand attestations.
    Raises UnreadableArtifactError for an index of several artifacts or of none, which names their digests.
    """
    try:
        document = json.loads(content)
        if "manifests" not in document:
            return None
        listed = [each for each in document["manifests"] if not _is_attestation(each)]
        models = [each for each in listed if each.get("artifactType") == ARTIFACT_TYPE]
        chosen = models if len(models) == 1 else listed
        shown = ", ".join(map(_describe_in_index, chosen[:_MOST_SHOWN]))
        [digest] = [str(each["digest"]) for each in chosen] if len(chosen) == 1 else [""]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnreadableArtifactError(_NO_MANIFEST) from None
    if len(chosen) != 1:
        what = f"{len(chosen)} artifacts: {shown}{', …' if len(chosen) > _MOST_SHOWN else ''}" if chosen else "nothing"
        raise UnreadableArtifactError(f"is an index of {what}")
    if not _DIGEST.fullmatch(digest):
        raise UnreadableArtifactError(f"is an index of the digest {digest!r:.100}, and sha256 is supported")
    return digest


def build_artifact(files: Sequence[PackedFile], name: str, annotations: Mapping[str, str]) -> BuiltArtifact:
    """Return configuration and manifest of files. `name` is the model's, or empty; `annotations` are the artifact's."""
    ordered = sorted(files)
    weights = {PurePosixPath(file.name).suffix for file in ordered if file.name.endswith(_WEIGHTS)}
    config = _dump(
        {
            "descriptor": {"name": name} if name else {},
            "config": {"format": "safetensors"} if weights == {".safetensors"} else {},
            "modelfs": {"type": "layers", "diffIds": [f"sha256:{file.sha256}" for file in ordered]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": compute_digest(config), "size": len(config)},
        "layers": [
            {
                "mediaType": find_media_type(file.name),
                "digest": f"sha256:{file.sha256}",
                "size": file.size,
                "annotations": {FILE_PATH: file.name, TITLE: file.name},
            }
            for file in ordered
        ],
    }
    return BuiltArtifact(config, _dump(manifest | ({"annotations": dict(annotations)} if annotations else {})))


def find_media_type(name: str) -> str:
    """Return ModelPack's media type of a file, which is sent as it is."""
    kind = "weight.config"
    for found, suffixes in (("weight", _WEIGHTS), ("dataset", _DATASETS), ("doc", _DOCUMENTS), ("code", (".py",))):
        if name.lower().endswith(suffixes):
            kind = found
    if PurePosixPath(name).name.upper() in ("LICENSE", "NOTICE", "README"):
        kind = "doc"
    return f"application/vnd.cncf.model.{kind}.v1.raw"


def _parse_layer(layer: dict[str, Any]) -> Layer:
    """Return a layer. Raises UnreadableArtifactError, and ValueError and others for what is no descriptor."""
    digest, size, media_type = str(layer["digest"]), layer["size"], str(layer["mediaType"])
    if not _DIGEST.fullmatch(digest):
        raise UnreadableArtifactError(f"has a layer with the digest {digest!r:.100}, and sha256 is supported")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError("a size that is none")
    annotations = layer.get("annotations") or {}
    path = next((str(annotations[key]) for key in _FILE_PATHS if annotations.get(key)), "")
    title = str(annotations.get(TITLE) or "")
    if title and not path and not _is_model_layer(media_type):
        if annotations.get(_ORAS_UNPACK) == "true":
            return Layer(digest, size, "", "tar+zstd" if media_type.endswith("+zstd") else "tar+gzip")
        return Layer(digest, size, _clean(title), "file")
    return Layer(digest, size, _clean(path or title), _find_packing(media_type, path or title))


def _find_packing(media_type: str, name: str) -> Packing:
    if media_type.endswith((".tar+gzip", ".tar.gzip")):
        return "tar+gzip"
    if media_type.endswith((".tar+zstd", ".tar.zstd")):
        return "tar+zstd"
    if media_type.endswith(".tar"):
        return "tar"
    if media_type.endswith("+zstd"):
        raise UnreadableArtifactError(
            f"has a layer of type {media_type:.100}: zstd is read of tar archives (.tar+zstd)"
        )
    if not name:
        raise UnreadableArtifactError(f"has a layer of type {media_type} without the name of its file")
    return "file"


def _is_attestation(entry: dict[str, Any]) -> bool:
    """Return whether a manifest in an index is buildx' description of another one."""
    return (entry.get("annotations") or {}).get("vnd.docker.reference.type") == "attestation-manifest"


def _describe_in_index(entry: dict[str, Any]) -> str:
    """Return the digest of a manifest in an index, and its platform or kind, which distinguishes it from the others."""
    platform = entry.get("platform") or {}
    found = "/".join(str(platform[name]) for name in ("os", "architecture", "variant") if platform.get(name))
    kind = found or str(entry.get("artifactType") or "")
    return f"{entry['digest']!s:.80}{f' ({kind:.80})' if kind else ''}"


def _is_model_layer(media_type: str) -> bool:
    return media_type.startswith(("application/vnd.cncf.model.", "application/vnd.cnai.model."))


def _is_image(document: dict[str, Any]) -> bool:
    """Return whether a manifest is of an image: its layers are the file system of a container."""
    config = document.get("config") or {}
    return str(config.get("mediaType")) in (
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    )


def _clean(name: str) -> str:
    return name.removeprefix("./")


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
