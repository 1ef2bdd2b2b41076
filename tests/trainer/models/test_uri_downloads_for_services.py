"""The program that downloads a service's models and adapters from URIs, and what engines make of its links."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from go_fixtures import skip_without_programs
from hone_api import containers
from hone_api.artifacts.manifest import list_folders, read_manifest
from hone_api.reasons import HoneError
from hone_server.artifacts.sources import find_model_sources
from hone_server.artifacts.verify import verify_adapter, verify_model
from hone_trainer.push.oci_push import ArtifactPusher
from hone_trainer.remote.locations import Location
from ociserver.registry import LOGIN, RegistryServer, find_missing_program
from short_waits import build_impatient_command
from transformers import AutoModelForCausalLM

# The registry is either there or not, in these tests.
LONGEST_WAIT_SECONDS = 0.01


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """Yield a registry that requires user and password."""
    skip_without_programs(find_missing_program())
    with RegistryServer(tmp_path_factory.mktemp("registry"), has_login=True) as server:
        yield server


class Pod:
    """The init container of a pod: its cache, which pods may share, its Secret, and the volume for its links."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.cache, self.links, self.secret = cache, folder / "downloaded", folder / "secret"
        self.links.mkdir(parents=True)
        self.secret.mkdir()
        for key, value in LOGIN.items():
            (self.secret / key).write_text(value)

    def run(self, *downloads: tuple[str, str, dict[str, Any]], code: int = 0) -> str:
        """Run the program for fields of the spec, with the names of links and the sources; return its log."""
        arguments = ["--secret", f"login={self.secret}"]
        for field, link, source in downloads:
            request = {"field": field, "link": str(self.links / link), "source": {"secret": {"name": "login"}} | source}
            arguments += ["--download", json.dumps(request)]
        command = [*build_impatient_command(containers.URI_DOWNLOAD, LONGEST_WAIT_SECONDS), *arguments]
        environment = {**os.environ, "HF_HOME": str(self.cache)}
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        assert LOGIN["password"] not in done.stderr
        return done.stderr


@pytest.fixture
def make_pod(tmp_path: Path) -> Callable[..., Pod]:
    """Make pods that share a cache."""
    return lambda name="pod": Pod(tmp_path / name, tmp_path / "cache")


def push(registry: RegistryServer, name: str, folder: Path, parts: list[str] | None = None) -> str:
    """Push the files of a folder, or its manifest and those of its parts, and return the URI with the digest."""
    roots = [folder / part for part in parts] if parts is not None else [folder]
    paths = [path for root in roots for path in root.rglob("*") if path.is_file()]
    paths += [folder / "manifest.json"] if parts is not None else []
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    location = Location("model", f"oci://{registry.host}/{name}:v1", secret=LOGIN)
    return f"oci://{registry.host}/{name}@{ArtifactPusher(location, print).push(files)}"


@pytest.fixture(scope="module")
def trained(
    train: Callable[..., Any], job: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the artifact of a training that has an adapter and a merged model."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    done = train(job(output={"save": "both"}), output=folder)
    assert done.code == 0, done.log
    return folder


def test_an_artifact_of_hone_is_linked_and_verified(
    registry: RegistryServer, trained: Path, claim: Path, make_pod: Callable[..., Pod]
) -> None:
    manifest = read_manifest(trained)
    uri = push(registry, "models/faq", trained, list_folders(manifest.kind))
    base = push(registry, "models/tiny", claim / "tiny")
    pod = make_pod()
    source = {"uri": uri, "digest": manifest.digest}
    log = pod.run(
        ("spec.model", "model", source),
        ("spec.adapters[0]", "adapters/faq", source),
        ("spec.model", "base", {"uri": base}),
    )
    assert f"hone-download: {uri} is in " in log
    assert verify_model(pod.links / "model", manifest.digest).name == "merged"
    folder, digest = verify_adapter("faq", pod.links / "adapters/faq", manifest.digest, None, None)
    assert (folder.name, digest) == ("adapter", manifest.digest)
    options: dict[str, Any] = {"expected": {"faq": manifest.digest}, "claims": {}}
    found = find_model_sources(
        str(pod.links / "base"), name="tiny", adapters={"faq": pod.links / "adapters/faq"}, **options
    )
    assert [(entry.name, entry.kind) for entry in found.entries] == [("tiny", "base"), ("faq", "adapter")]
    assert AutoModelForCausalLM.from_pretrained(pod.links / "model").num_parameters() > 0
    weights = (pod.links / "model").resolve() / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(HoneError) as caught:
        verify_model(pod.links / "model", manifest.digest)
    assert caught.value.reason.name == "ArtifactCorrupt"


def test_another_digest_than_the_spec_has_is_refused(
    registry: RegistryServer, trained: Path, claim: Path, make_pod: Callable[..., Pod]
) -> None:
    other = f"sha256:{'0' * 64}"
    uri = push(registry, "models/faq", trained, list_folders(read_manifest(trained).kind))
    log = make_pod().run(("spec.model", "model", {"uri": uri, "digest": other}), code=65)
    [failure] = containers.find_failures(log)
    assert failure.reason == "ArtifactCorrupt"
    assert "its manifest.json has sha256:" in failure.sentence
    assert "Correct spec.model.digest" in failure.sentence
    plain = push(registry, "models/tiny", claim / "tiny")
    log = make_pod("plain").run(("spec.model", "model", {"uri": plain, "digest": other}), code=65)
    assert "it has no manifest.json" in log


def test_a_model_and_an_adapter_are_not_taken_for_each_other(
    registry: RegistryServer, trained: Path, claim: Path, make_pod: Callable[..., Pod]
) -> None:
    adapter = push(registry, "adapters/plain", trained / "adapter")
    log = make_pod().run(("spec.model", "model", {"uri": adapter}), code=65)
    assert "Name its base in spec.model, and it in spec.adapters" in log
    model = push(registry, "models/tiny", claim / "tiny")
    log = make_pod("other").run(("spec.adapters[2]", "adapters/a", {"uri": model}), code=65)
    [failure] = containers.find_failures(log)
    assert failure.reason == "AdapterMismatch"
    assert failure.sentence.startswith(f"spec.adapters[2].uri is {model}, which holds no adapter")


def test_a_second_start_needs_no_registry(registry: RegistryServer, claim: Path, make_pod: Callable[..., Pod]) -> None:
    uri = push(registry, "models/again", claim / "tiny").partition("@")[0] + ":v1"
    first, again = make_pod(), make_pod("again")
    first.run(("spec.model", "model", {"uri": uri}))
    registry.kill()
    try:
        log = again.run(("spec.model", "model", {"uri": uri}))
    finally:
        registry.start()
    assert "using what was downloaded before" in log
    assert (again.links / "model").resolve() == (first.links / "model").resolve()


def test_a_uri_with_a_digest_asks_the_registry_once(
    registry: RegistryServer, claim: Path, make_pod: Callable[..., Pod]
) -> None:
    uri = push(registry, "models/pinned", claim / "tiny")
    make_pod().run(("spec.model", "model", {"uri": uri}))
    asked = registry.count_requests("GET /v2/models/pinned")
    assert asked
    make_pod("again").run(("spec.model", "model", {"uri": uri}))
    assert registry.count_requests("GET /v2/models/pinned") == asked


def test_a_wrong_login_is_named(registry: RegistryServer, claim: Path, make_pod: Callable[..., Pod]) -> None:
    uri = push(registry, "models/locked", claim / "tiny")
    pod = make_pod()
    (pod.secret / "password").write_text("opensesam")
    [failure] = containers.find_failures(pod.run(("spec.model", "model", {"uri": uri}), code=67))
    assert failure.reason == "StoreUnauthorized"
    assert failure.sentence.startswith(f"spec.model.uri is {uri}, and the server refused access")
