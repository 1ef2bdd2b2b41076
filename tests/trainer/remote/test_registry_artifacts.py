"""Artifacts of registries that other programs leave: indexes, layers with zstd, lost blobs, and short names."""

import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import zstandard
from faulty_server import Reply, Store, error, files_of
from hone_api.reasons import DATASET_INVALID, DATASET_NOT_FOUND, INVALID_SPEC, STORE_UNAUTHORIZED, HoneError
from hone_trainer.modelpack.artifact import ARTIFACT_TYPE, MANIFEST_TYPE, compute_digest
from hone_trainer.remote.fetch import fetch
from hone_trainer.remote.locations import Kind, Location
from ociserver.registry import RegistryServer

pytestmark = pytest.mark.usefixtures("quick")

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
EMPTY = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": compute_digest(b"{}"), "size": 2}
ATTESTATION = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
_numbers = itertools.count()


def at(server: RegistryServer, name: str) -> Location:
    return Location("dataset", f"oci://{server.host}/{name}")


def failure_of(location: Location) -> HoneError:
    with pytest.raises(HoneError) as caught:
        fetch(location, None)
    return caught.value


def make_layer(server: RegistryServer, repository: str, content: bytes, media_type: str, name: str) -> dict[str, Any]:
    annotations = {"annotations": {"org.cncf.model.filepath": name}} if name else {}
    return server.put_blob(repository, content) | {"mediaType": media_type} | annotations


def put(server: RegistryServer, repository: str, tag: str, *layers: dict[str, Any]) -> dict[str, Any]:
    """Write an artifact, and return its descriptor for an index."""
    config = server.put_blob(repository, b"{}") | {"mediaType": "application/x"}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": list(layers)}
    digest = server.put_manifest(repository, tag, manifest)
    return {"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(json.dumps(manifest))}


def put_file(server: RegistryServer, repository: str, tag: str, content: bytes) -> dict[str, Any]:
    media_type = "application/vnd.cncf.model.dataset.v1.raw"
    return put(server, repository, tag, make_layer(server, repository, content, media_type, "a.jsonl"))


def put_index(server: RegistryServer, repository: str, *manifests: dict[str, Any]) -> Location:
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": list(manifests)}
    server.put_manifest(repository, "all", index)
    return at(server, f"{repository}:all")


@pytest.fixture
def repository() -> str:
    return f"others/{next(_numbers)}"


def test_the_one_artifact_of_an_index_is_read(registry: RegistryServer, repository: str) -> None:
    location = put_index(registry, repository, put_file(registry, repository, "one", b"one"))
    first = fetch(location, None)
    assert files_of(first) == {"a.jsonl": b"one"}
    assert fetch(at(registry, f"{repository}:one"), None).folder != first.folder, "another URI"


def test_attestations_and_images_next_to_the_artifact_are_left_out(registry: RegistryServer, repository: str) -> None:
    one, other = (put_file(registry, repository, tag, tag.encode()) for tag in ("one", "other"))
    assert files_of(fetch(put_index(registry, repository, one, other | ATTESTATION), None)) == {"a.jsonl": b"one"}
    of_model = {"artifactType": ARTIFACT_TYPE}
    assert files_of(fetch(put_index(registry, repository, one, other | of_model), None)) == {"a.jsonl": b"other"}


def test_an_index_of_several_artifacts_names_them(registry: RegistryServer, repository: str) -> None:
    one, other = (put_file(registry, repository, tag, tag.encode()) for tag in ("one", "other"))
    platform = {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}
    failure = failure_of(put_index(registry, repository, one, other | platform))
    assert failure.reason is DATASET_INVALID
    listed = f"is an index of 2 artifacts: {one['digest']}, {other['digest']} (linux/arm64/v8)"
    assert listed in failure.message
    assert f"oci://{registry.host}/{repository}@DIGEST" in failure.remedy
    assert files_of(fetch(at(registry, f"{repository}@{other['digest']}"), None)) == {"a.jsonl": b"other"}


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b'{"manifests": 3}', b'{"manifests": [{}]}', b'{"manifests": [[]]}', b"[" * 9**5],
)
def test_what_is_no_manifest_is_refused(store: Store, content: bytes) -> None:
    store.reply = lambda request: (200, {}, content)
    failure = failure_of(Location("dataset", f"oci://{store.url.removeprefix('http://')}/faq:v1"))
    assert failure.reason is DATASET_INVALID
    assert "that is none of" in failure.message


def test_a_manifest_that_is_too_large_is_refused_with_what_to_do(store: Store) -> None:
    store.reply = lambda request: (200, {}, b" " * (32 * 2**20 + 1))
    failure = failure_of(Location("dataset", f"oci://{store.url.removeprefix('http://')}/faq:v1"))
    assert "has more than 32 MiB" in failure.message
    assert "Push fewer files" in failure.remedy


def test_an_index_without_artifacts_or_in_an_index_is_refused(registry: RegistryServer, repository: str) -> None:
    assert "is an index of nothing" in failure_of(put_index(registry, repository)).message
    one = put_file(registry, repository, "one", b"one")
    put_index(registry, repository, one)
    inner = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [one]}
    nested = {"mediaType": INDEX_TYPE, "digest": compute_digest(json.dumps(inner).encode()), "size": 1}
    assert "a manifest that is none of" in failure_of(put_index(registry, repository, nested)).message


def test_an_artifact_without_files_is_named(registry: RegistryServer, repository: str) -> None:
    registry.put_blob(repository, b"{}")
    put(registry, repository, "v1", EMPTY)
    failure = failure_of(at(registry, f"{repository}:v1"))
    assert failure.reason is DATASET_NOT_FOUND
    assert "nothing is there" in failure.message


def pack(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


FILES = {"a.jsonl": b"{}\n" * 100_000, "deep/b.jsonl": bytes(2**20)}
ZSTD = "application/vnd.cncf.model.dataset.v1.tar+zstd"


@pytest.mark.parametrize("name", ["", "files"])
@pytest.mark.parametrize("level", [1, 19])
def test_archives_with_zstd_are_read(registry: RegistryServer, repository: str, name: str, level: int) -> None:
    archive = pack(FILES)
    compressor = zstandard.ZstdCompressor(level=level)
    frames = compressor.compress(archive[:5000]) + compressor.compress(archive[5000:])
    put(registry, repository, "v1", make_layer(registry, repository, frames, ZSTD, name))
    assert files_of(fetch(at(registry, f"{repository}:v1"), None)) == FILES


def test_a_folder_of_oras_with_zstd_is_read(registry: RegistryServer, repository: str) -> None:
    annotations = {"org.opencontainers.image.title": "deep", "io.deis.oras.content.unpack": "true"}
    packed = zstandard.ZstdCompressor().compress(pack(FILES))
    layer = registry.put_blob(repository, packed) | {"mediaType": "application/x.tar+zstd", "annotations": annotations}
    put(registry, repository, "v1", layer)
    assert files_of(fetch(at(registry, f"{repository}:v1"), None)) == FILES


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"x" * 2000, ZSTD),
        (zstandard.ZstdCompressor().compress(pack(FILES))[:100], ZSTD),
        (zstandard.ZstdCompressor().compress(b"x" * 2000), ZSTD),
        (zstandard.ZstdCompressor().compress(b"x"), "application/vnd.cncf.model.dataset.v1.raw+zstd"),
    ],
    ids=["no zstd", "cut", "no archive", "a file"],
)
def test_what_is_no_archive_with_zstd_is_refused(
    registry: RegistryServer, repository: str, content: bytes, media_type: str
) -> None:
    put(registry, repository, "v1", make_layer(registry, repository, content, media_type, ""))
    failure = failure_of(at(registry, f"{repository}:v1"))
    assert failure.reason is DATASET_INVALID
    assert "zstd" in failure.message


def test_a_blob_that_the_registry_has_lost_is_named(registry: RegistryServer, repository: str) -> None:
    put_file(registry, repository, "v1", b"lost rows of this test")
    digest = compute_digest(b"lost rows of this test").removeprefix("sha256:")
    [folder] = registry.storage.rglob(f"blobs/sha256/*/{digest}")
    shutil.rmtree(folder)
    failure = failure_of(at(registry, f"{repository}:v1"))
    assert failure.reason is DATASET_INVALID
    assert f"has its manifest and has lost blob sha256:{digest} of a.jsonl" in failure.message
    assert "Push the artifact again" in failure.remedy


def test_a_manifest_of_an_index_that_the_registry_has_lost_is_named(registry: RegistryServer, repository: str) -> None:
    one = put_file(registry, repository, "one", b"one of a lost manifest")
    location = put_index(registry, repository, one)
    [folder] = registry.storage.rglob(f"blobs/sha256/*/{one['digest'].removeprefix('sha256:')}")
    shutil.rmtree(folder)
    assert f"has lost manifest {one['digest']} of its index" in failure_of(location).message


def test_the_store_behind_a_registry_that_refuses_its_address_is_named(store: Store) -> None:
    layer = {"mediaType": "application/x", "digest": compute_digest(b"a"), "size": 1}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "layers": [layer | {"annotations": {"org.opencontainers.image.title": "a.jsonl"}}],
    }

    def redirect(request: BaseHTTPRequestHandler) -> Reply:
        if "/blobs/" in request.path:
            return 307, {"Location": f"{behind.url}/blob?X-Amz-Signature=TOPSECRET"}, b""
        return 200, {}, json.dumps(manifest).encode()

    behind = Store({})
    try:
        store.reply, behind.reply = redirect, lambda request: error("AccessDenied", 403)
        failure = failure_of(Location("dataset", f"oci://{store.url.removeprefix('http://')}/faq:v1"))
    finally:
        behind.shutdown()
        behind.server_close()
    assert failure.reason is STORE_UNAUTHORIZED
    host = behind.url.removeprefix("http://")
    assert f"{host}, where the registry keeps its blobs, refused access: status 403, AccessDenied" in failure.message
    assert "TOPSECRET" not in f"{failure.message}{failure.remedy}"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("my-org/faq:v1", "oci://docker.io/my-org/faq:v1"),
        ("library/llama:v1", "oci://docker.io/library/llama:v1"),
        ("registry/faq:v1", "oci://registry:443/faq:v1"),
    ],
)
def test_a_short_name_of_docker_is_refused_with_the_full_one(name: str, full: str) -> None:
    failure = failure_of(Location("dataset", f"oci://{name}"))
    assert failure.reason is INVALID_SPEC
    assert "is no host of a registry" in failure.message
    assert full in failure.remedy


@pytest.mark.parametrize("name", ["llama", "llama:v1", "library/llama"])
def test_a_name_without_host_or_tag_is_refused_with_the_form(name: str) -> None:
    failure = failure_of(Location("dataset", f"oci://{name}"))
    assert failure.reason is INVALID_SPEC
    assert "oci://REGISTRY/REPOSITORY:TAG" in failure.remedy
    assert "docker.io" in failure.remedy


@pytest.mark.parametrize(("kind", "field"), [("push", "spec.output.push[0]"), ("model", "spec.model")])
def test_a_short_name_reaches_the_server_of_an_endpoint(store: Store, kind: Kind, field: str) -> None:
    store.reply = lambda request: (404, {}, b"")
    assert "nothing is there" in failure_of(Location(kind, "oci://team/faq:v1", store.url, spec_field=field)).message
