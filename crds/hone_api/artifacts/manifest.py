"""manifest.json: the kind of an artifact, and the digests of its files.

The trainer writes it last and atomically: no manifest, no artifact. A manifest that is read may have been changed by
others: its fields are checked here, and the files in `verification`, which is next.
"""

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from hone_api import strictjson
from hone_api.common import ForeignModel, HubName, ObjectName, RelativePath, RemoteUri, Revision
from hone_api.figures import Figures
from hone_api.io.durable_files import write_atomically
from hone_api.layout import ADAPTER, MANIFEST, MERGED
from hone_api.reasons import ARTIFACT_CORRUPT, ARTIFACT_MISSING, HoneError

ArtifactKind = Literal["adapter", "merged", "both", "model"]

# A hundred thousand files would fit. What is larger was not written by Hone, and is not read into memory.
LARGEST_MANIFEST_BYTES = 16 * 2**20
LARGEST_FILE_BYTES = 2**63 - 1
CORRUPT_REMEDY = "Restore manifest.json from where the artifact came from, or run the FineTuneJob again."


class FileDigest(ForeignModel):
    """The required digest of a file: `sha256` in hex, `size` in bytes."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(strict=True, ge=0, le=LARGEST_FILE_BYTES)]


class BaseModelReference(ForeignModel):
    """The base model: a hub name with the commit that was loaded, or a claim and a path on it, or a URI.

    `revision` of a URI is the folder of the download, see layout.make_remote_folder.
    """

    name: HubName | None = None
    claim: ObjectName | None = None
    path: RelativePath | None = None
    uri: RemoteUri | None = None
    revision: Revision | None = None


class BaseConfig(ForeignModel):
    """The parts of the base model's configuration that decide which engine can serve it, and with how much memory."""

    architecture: str | None = Field(None, description="transformers' class, such as LlamaForCausalLM.")
    quantization: str | None = Field(None, description="quant_method of the checkpoint, if it is quantized.")
    embedding_modules: list[str] = Field([], description="Names of the input embedding and of the output head.")
    cache_bytes_per_token: int | None = Field(
        None,
        description="Key-value cache of one token in 16 bits, of the layers that keep every token; left out where "
        "the configuration does not define it.",
    )


class ArtifactManifest(ForeignModel):
    """The content of manifest.json. The keys of `files` are paths relative to the tree's root."""

    kind: ArtifactKind
    job: Annotated[str, Field(max_length=253, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    base_model: BaseModelReference
    base_config: BaseConfig | None = None
    dataset_fingerprint: str
    files: dict[str, FileDigest]
    metrics: Figures
    parameters: dict[str, int]
    versions: dict[str, str]
    spec: dict[str, Any]


def list_folders(kind: ArtifactKind) -> list[str]:
    """Return the folders of the artifact tree that a kind consists of."""
    return [ADAPTER, MERGED] if kind == "both" else [kind]


def compute_files_digest(files: dict[str, FileDigest]) -> str:
    """Return `sha256:…` over the sorted lines `<sha256>  <path>`, as `sha256sum` prints them."""
    lines = "".join(f"{file.sha256}  {path}\n" for path, file in sorted(files.items()))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def describe_files(root: Path, folders: list[str]) -> dict[str, FileDigest]:
    """Return digest and size of every file below the folders of an artifact tree, hashed in parallel."""
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(
            zip([path.relative_to(root).as_posix() for path in paths], pool.map(_describe_path, paths), strict=True)
        )


def write_manifest(root: Path, manifest: ArtifactManifest) -> None:
    """Write manifest.json atomically: after a power cut, too, it is complete or missing."""
    write_atomically(root / MANIFEST, json.dumps(manifest.to_wire(), indent=2, allow_nan=False))


def read_manifest(root: Path) -> ArtifactManifest:
    """Read manifest.json. Raises HoneError ArtifactMissing without one, ArtifactCorrupt when it can't be read."""
    path = root / MANIFEST
    try:
        return ArtifactManifest.model_validate(strictjson.parse(read_content(path)))
    except (FileNotFoundError, NotADirectoryError):
        raise HoneError(ARTIFACT_MISSING, f"{root} has no {MANIFEST}") from None
    except OSError as error:
        problem = f"can't be read: {error.strerror}"
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f" {part!r}" for part in first["loc"])
        problem = f"is not an artifact's manifest:{where} {first['msg']}"
    except ValueError as error:
        problem = f"is not an artifact's manifest: {error}"
    raise HoneError(ARTIFACT_CORRUPT, f"{path} {problem}", remedy=CORRUPT_REMEDY)


def open_regular(path: Path) -> int:
    """Open a file to read, and return its descriptor. Raises OSError, also for links; ValueError unless it is a file.

    A FIFO without a writer, which would block the reader, is refused as well.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    return descriptor


def describe_file(file: int) -> FileDigest:
    """Return digest and size of an open file."""
    if hasattr(os, "posix_fadvise"):  # Linux then reads further ahead while this hashes
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    with open(file, "rb", closefd=False) as stream:
        return FileDigest(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), size=os.fstat(file).st_size)


def read_content(path: Path) -> bytes:
    """Return a file's content. Raises OSError, and ValueError for anything but a file, or if larger than a manifest."""
    with open(open_regular(path), "rb") as file:
        content = file.read(LARGEST_MANIFEST_BYTES + 1)
    if len(content) > LARGEST_MANIFEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_MANIFEST_BYTES} bytes")
    return content


def _describe_path(path: Path) -> FileDigest:
    with path.open("rb") as file:
        return describe_file(file.fileno())
