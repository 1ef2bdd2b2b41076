"""Models and datasets pushed to and pulled from a real OCI registry."""

import base64
import hashlib
import io
import itertools
import json
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hone_api.reasons import (
    DATASET_INVALID,
    DATASET_NOT_FOUND,
    INVALID_SPEC,
    STORE_UNAUTHORIZED,
    STORE_UNREACHABLE,
    HoneError,
)
from hone_trainer.push.oci_push import ArtifactPusher
from hone_trainer.remote.fetch import Snapshot, fetch
from hone_trainer.remote.locations import Kind, Location
from hone_trainer.remote.oci_registry import Registry
from ociserver.registry import LOGIN, RegistryServer, TokenServer
from s3server.gateway import Authority

pytestmark = pytest.mark.usefixtures("cache")

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4096, "deep/er/a.txt": b"", "README.md": b"#"}
MANIFEST = {"manifest.json": b"{}"}
# How long a registry accepts a token that has expired: clocks differ.
TOLERANCE_SECONDS = 60
_numbers = itertools.count()


def files_of(snapshot: Snapshot) -> dict[str, bytes]:
    paths = [path for path in snapshot.folder.rglob("*") if path.is_file()]
    return {path.relative_to(snapshot.folder).as_posix(): path.read_bytes() for path in paths}


def at(server: RegistryServer, name: str, kind: Kind = "dataset", **changed: Any) -> Location:
    return Location(kind, f"oci://{server.host}/{name}", **changed)


def write(folder: Path, files: Mapping[str, bytes]) -> dict[str, Path]:
    paths = {}
    for name, content in files.items():
        paths[name] = folder / name
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_bytes(content)
    return paths


def push(location: Location, paths: dict[str, Path], notes: list[str] | None = None, **more: Any) -> str:
    note = notes.append if notes is not None else print
    return ArtifactPusher(location, note, first_wait_seconds=0.01).push(paths, **more)


def pack(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def put_artifact(
    server: RegistryServer, layers: list[tuple[bytes, str, dict[str, str]]], config_type: str = "application/x"
) -> str:
    """Write an artifact of layers with media types and annotations, and return its name with a tag."""
    repository = f"put/artifact-{next(_numbers)}"
    config = server.put_blob(repository, b"{}") | {"mediaType": config_type}
    described = [
        server.put_blob(repository, content) | {"mediaType": media_type, "annotations": annotations}
        for content, media_type, annotations in layers
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": described,
    }
    server.put_manifest(repository, "v1", manifest)
    return f"{repository}:v1"


def failure_of(location: Location) -> HoneError:
    with pytest.raises(HoneError) as caught:
        fetch(location, None)
    assert LOGIN["password"] not in f"{caught.value} {caught.value.remedy}"
    return caught.value


def test_what_is_pushed_is_pulled_by_tag_and_by_digest(registry: RegistryServer, tmp_path: Path) -> None:
    digest = push(at(registry, "models/faq:v1"), write(tmp_path / "in", FILES))
    by_tag = fetch(at(registry, "models/faq:v1"), None)
    assert files_of(by_tag) == FILES
    assert files_of(fetch(at(registry, f"models/faq@{digest}"), None)) == FILES
    assert files_of(fetch(at(registry, f"models/faq:other@{digest}"), None)) == FILES


def test_a_push_that_is_repeated_sends_nothing(registry: RegistryServer, tmp_path: Path) -> None:
    location, paths, notes = at(registry, "models/twice:v1"), write(tmp_path / "in", FILES), []
    first = push(location, paths, notes)
    sent = registry.count_requests("POST /v2/models/twice"), registry.count_requests("PUT /v2/models/twice")
    again = push(location, write(tmp_path / "copy", FILES), notes)
    assert again == first
    assert sent == (registry.count_requests("POST /v2/models/twice"), registry.count_requests("PUT /v2/models/twice"))
    assert notes[-1] == f"{location.uri} is complete: {first}"


def test_a_changed_file_alone_is_sent(registry: RegistryServer, tmp_path: Path) -> None:
    location = at(registry, "models/changed:v1")
    first = push(location, write(tmp_path / "in", FILES))
    begun = registry.count_requests("POST /v2/models/changed")
    changed = FILES | {"config.json": b'{"a": 1}'}
    second = push(location, write(tmp_path / "in", changed))
    assert second != first
    assert registry.count_requests("POST /v2/models/changed") - begun == 2, "the file and the configuration"
    assert files_of(fetch(location, None)) == changed


def test_the_registry_refuses_a_file_with_another_digest_than_was_named(
    registry: RegistryServer, tmp_path: Path
) -> None:
    paths = write(tmp_path / "in", {"a.txt": b"one"})
    with pytest.raises(HoneError) as caught:
        push(at(registry, "models/wrong:v1"), paths, digests={"a.txt": hashlib.sha256(b"two").hexdigest()})
    assert "DIGEST_INVALID" in caught.value.message


def test_the_manifest_is_that_of_the_model_specification(registry: RegistryServer, tmp_path: Path) -> None:
    push(at(registry, "models/described:v1"), write(tmp_path / "in", FILES))
    found = Registry(at(registry, "models/described:v1")).read_manifest()
    assert found
    manifest = json.loads(found[0])
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]} == {
        "README.md": "application/vnd.cncf.model.doc.v1.raw",
        "config.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "deep/er/a.txt": "application/vnd.cncf.model.weight.config.v1.raw",
        "model.safetensors": "application/vnd.cncf.model.weight.v1.raw",
    }


MODEL = "application/vnd.cncf.model"
OF_OTHERS = {
    "modctl, archives": [
        (pack({"model.bin": b"w"}), f"{MODEL}.weight.v1.tar", {"org.cncf.model.filepath": "model.bin"}),
        (pack({"deep/a.json": b"{}"}), f"{MODEL}.weight.config.v1.tar", {"org.cncf.model.filepath": "deep/a.json"}),
    ],
    "modctl, raw": [
        (b"w", f"{MODEL}.weight.v1.raw", {"org.cncf.model.filepath": "model.bin"}),
        (b"{}", f"{MODEL}.weight.config.v1.raw", {"org.cncf.model.filepath": "deep/a.json"}),
    ],
    "modctl before CNCF's name": [
        (b"w", "application/vnd.cnai.model.weight.v1.raw", {"org.cnai.model.filepath": "model.bin"}),
        (b"{}", "application/vnd.cnai.model.weight.config.v1.raw", {"org.cnai.model.filepath": "deep/a.json"}),
    ],
    "one compressed archive": [
        (pack({"./model.bin": b"w", "./deep/a.json": b"{}"}, "w:gz"), f"{MODEL}.weight.v1.tar+gzip", {}),
    ],
    "oras, files": [
        (b"w", "application/vnd.oci.image.layer.v1.tar", {"org.opencontainers.image.title": "model.bin"}),
        (b"{}", "application/json", {"org.opencontainers.image.title": "deep/a.json"}),
    ],
    "oras, a folder and a file": [
        (
            pack({"deep/a.json": b"{}"}, "w:gz"),
            "application/vnd.oci.image.layer.v1.tar+gzip",
            {"org.opencontainers.image.title": "deep", "io.deis.oras.content.unpack": "true"},
        ),
        (b"w", "application/vnd.oci.image.layer.v1.tar", {"org.opencontainers.image.title": "model.bin"}),
    ],
}


@pytest.mark.parametrize("layers", OF_OTHERS.values(), ids=list(OF_OTHERS))
def test_artifacts_of_other_programs_are_read(
    registry: RegistryServer, layers: list[tuple[bytes, str, dict[str, str]]]
) -> None:
    snapshot = fetch(at(registry, put_artifact(registry, layers)), None)
    assert files_of(snapshot) == {"model.bin": b"w", "deep/a.json": b"{}"}
    assert [path for path in snapshot.folder.parent.iterdir() if not path.name.endswith(".lock")] == [snapshot.folder]


def make_link() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("a")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    return buffer.getvalue()


HOSTILE = {
    "out of the folder": [(pack({"../a": b"x"}), f"{MODEL}.weight.v1.tar", {})],
    "absolute": [(pack({"/tmp/a": b"x"}), f"{MODEL}.weight.v1.tar", {})],
    "a link": [(make_link(), f"{MODEL}.weight.v1.tar", {})],
    "twice in an archive": [(pack({"a": b"x"})[:1024] + pack({"a": b"y"}), f"{MODEL}.weight.v1.tar", {})],
    "a file and its folder": [
        (pack({"a/b": b"x"}), f"{MODEL}.weight.v1.tar", {}),
        (b"y", f"{MODEL}.weight.v1.raw", {"org.cncf.model.filepath": "a"}),
    ],
    "no archive": [(b"x" * 2000, f"{MODEL}.weight.v1.tar+gzip", {})],
    "a cut archive": [(pack({"a": bytes(9000)}, "w:gz")[:40], f"{MODEL}.weight.v1.tar+gzip", {})],
    "a name out of the folder": [(b"x", f"{MODEL}.weight.v1.raw", {"org.cncf.model.filepath": "../a"})],
    "no name": [(b"x", f"{MODEL}.weight.v1.raw", {})],
    "a file with zstd": [(b"x", f"{MODEL}.weight.v1.raw+zstd", {})],
}


@pytest.mark.parametrize("layers", HOSTILE.values(), ids=list(HOSTILE))
def test_artifacts_that_can_not_be_files_are_refused(
    registry: RegistryServer, layers: list[tuple[bytes, str, dict[str, str]]], tmp_path: Path
) -> None:
    error = failure_of(at(registry, put_artifact(registry, layers)))
    assert error.reason is DATASET_INVALID
    assert not list((tmp_path / "cache").glob("remote/[!.]*"))


def test_an_image_is_no_artifact(registry: RegistryServer) -> None:
    layer = (pack({"a": b"x"}, "w:gz"), "application/vnd.oci.image.layer.v1.tar+gzip", {})
    name = put_artifact(registry, [layer], "application/vnd.oci.image.config.v1+json")
    assert "image of a container" in failure_of(at(registry, name)).message


def test_what_is_not_there_is_not_found(registry: RegistryServer) -> None:
    for name in ("none/such:v1", f"none/such@sha256:{'0' * 64}"):
        assert failure_of(at(registry, name)).reason is DATASET_NOT_FOUND


@pytest.mark.parametrize("name", ["faq", "faq:", "FAQ:v1", "faq@sha256:12", "faq:v1@md5:12", "faq//a:v1"])
def test_a_uri_names_a_tag_or_a_digest(registry: RegistryServer, name: str) -> None:
    assert failure_of(at(registry, name)).reason is INVALID_SPEC


def test_a_moved_tag_is_another_revision(registry: RegistryServer, tmp_path: Path) -> None:
    location = at(registry, "data/moved:v1")
    push(location, write(tmp_path / "in", {"a.jsonl": b"one"}))
    first = fetch(location, None)
    assert fetch(location, first.revision) == first
    push(location, write(tmp_path / "in", {"a.jsonl": b"two"}))
    second = fetch(location, first.revision)
    assert second.revision != first.revision
    assert (files_of(first), files_of(second)) == ({"a.jsonl": b"one"}, {"a.jsonl": b"two"})


def docker_config(server: RegistryServer, password: str = LOGIN["password"]) -> dict[str, str]:
    auth = base64.b64encode(f"{LOGIN['username']}:{password}".encode()).decode()
    return {".dockerconfigjson": json.dumps({"auths": {server.host: {"auth": auth}}})}


def test_user_and_password_come_from_either_kind_of_secret(locked_registry: RegistryServer, tmp_path: Path) -> None:
    server = locked_registry
    push(at(server, "faq:v1", secret=LOGIN), write(tmp_path / "in", FILES))
    in_config = {".dockerconfigjson": json.dumps({"auths": {f"https://{server.host}": LOGIN}})}
    for secret in (LOGIN, docker_config(server), in_config):
        assert files_of(fetch(at(server, "faq:v1", secret=secret), None)) == FILES


def test_a_login_of_docker_is_used_on_a_laptop(
    locked_registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(at(locked_registry, "laptop:v1", secret=LOGIN), write(tmp_path / "in", {"a.jsonl": b"one"}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert failure_of(at(locked_registry, "laptop:v1")).reason is STORE_UNAUTHORIZED
    (tmp_path / "config.json").write_text(docker_config(locked_registry)[".dockerconfigjson"])
    assert files_of(fetch(at(locked_registry, "laptop:v1"), None)) == {"a.jsonl": b"one"}


def test_unusable_logins_are_refused(locked_registry: RegistryServer) -> None:
    wrong = docker_config(locked_registry, "opensesam")
    assert failure_of(at(locked_registry, "faq:v1", secret=wrong)).reason is STORE_UNAUTHORIZED
    other_host = {".dockerconfigjson": json.dumps({"auths": {"ghcr.io": LOGIN}})}
    for secret in ({}, {"token": "x"}, {".dockerconfigjson": "opensesame"}, other_host):
        assert failure_of(at(locked_registry, "faq:v1", secret=secret)).reason is INVALID_SPEC


@pytest.fixture
def tokens(with_registry: None, tmp_path: Path) -> Iterator[TokenServer]:
    server = TokenServer(Authority(tmp_path / "authority"))
    yield server
    server.close()


def test_tokens_are_requested_for_the_repository_and_renewed(tokens: TokenServer, tmp_path: Path) -> None:
    with RegistryServer(tmp_path / "registry", tokens=tokens) as server:
        push(at(server, "team/faq:v1", secret=LOGIN), write(tmp_path / "in", FILES))
        assert ("repository:team/faq:pull,push", True) in tokens.requests
        assert files_of(fetch(at(server, "team/faq:v1", secret=LOGIN), None)) == FILES
        assert tokens.requests[-1] == ("repository:team/faq:pull", True)
        assert failure_of(at(server, "team/faq:v1", secret=LOGIN | {"password": "x"})).reason is STORE_UNAUTHORIZED
        assert failure_of(at(server, "team/faq:v1")).reason is STORE_UNAUTHORIZED


def test_a_token_that_has_expired_is_renewed(tokens: TokenServer, tmp_path: Path) -> None:
    tokens.lifetime_seconds = 2 - TOLERANCE_SECONDS
    with RegistryServer(tmp_path / "registry", tokens=tokens) as server:
        registry = Registry(at(server, "team/faq:v1", secret=LOGIN))
        assert registry.read_manifest() is None
        time.sleep(3)
        assert registry.read_manifest() is None
        assert len(tokens.requests) == 2


def test_a_registry_is_verified_with_the_bundle(with_registry: None, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    with RegistryServer(tmp_path / "registry", authority) as server:
        trusted = at(server, "faq:v1", ca_file=authority.certificates, endpoint=server.url)
        push(trusted, write(tmp_path / "in", FILES))
        assert files_of(fetch(trusted, None)) == FILES
        error = failure_of(at(server, "faq:v1", endpoint=server.url))
        assert error.reason is STORE_UNREACHABLE
        assert "CERTIFICATE_VERIFY_FAILED" in error.message


def test_a_model_and_a_dataset_are_trained_from_a_registry(
    locked_registry: RegistryServer,
    claim: Path,
    train: Callable[..., Any],
    job: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    server = locked_registry
    model = at(server, "models/tiny:v1", secret=LOGIN)
    # As Hone pushes a full model: below a folder, with its manifest.
    digest = push(
        model, {f"model/{path.name}": path for path in (claim / "tiny").iterdir()} | write(tmp_path, MANIFEST)
    )
    push(at(server, "data/text:v1", secret=LOGIN), {"text.jsonl": claim / "text.jsonl"})
    document = job(
        model={"uri": f"oci://{server.host}/models/tiny@{digest}", "secret": {"name": "login"}},
        dataset={"uri": f"oci://{server.host}/data/text:v1", "secret": {"name": "login"}},
    )
    secret = {"kind": "Secret", "metadata": {"name": "login"}, "stringData": docker_config(server)}
    done = train(document, secret, output=tmp_path / "out")
    assert done.code == 0, done.log
    assert LOGIN["password"] not in done.log
    assert done.manifest["baseModel"]["uri"] == f"oci://{server.host}/models/tiny@{digest}"
    local = train(job(), output=tmp_path / "local")
    assert yaml.safe_dump(done.metrics) == yaml.safe_dump(local.metrics), "the same steps as from the files"
