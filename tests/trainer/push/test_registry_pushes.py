"""Pushes to a real registry: repeated without a byte, moved tags, refused ones, and pulled again."""

import json
from pathlib import Path

import pytest
from hone_api.reasons import DESTINATION_OCCUPIED, STORE_UNAUTHORIZED, HoneError
from hone_trainer.push.artifact import LocalArtifact, load_artifact
from hone_trainer.push.main import main
from hone_trainer.push.oci import push_to_registry
from hone_trainer.push.oci_push import ArtifactPusher
from hone_trainer.remote.fetch import constants, fetch
from hone_trainer.remote.locations import Location
from ociserver.registry import LOGIN, RegistryServer
from pushed_artifacts import list_content, write_artifact


def at(registry: RegistryServer, reference: str, secret: dict[str, str] | None = None) -> Location:
    uri = f"oci://{registry.host}/{reference}"
    return Location("push", uri, secret=secret, spec_field="spec.output.push[0]")


def push(artifact: LocalArtifact, location: Location) -> tuple[str, list[str]]:
    notes: list[str] = []
    return push_to_registry(location, artifact, notes.append), notes


def pull(registry: RegistryServer, reference: str) -> dict[str, bytes]:
    return list_content(fetch(Location("model", f"oci://{registry.host}/{reference}"), None).folder)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))


def test_a_pushed_artifact_is_pulled_by_tag_and_by_digest(registry: RegistryServer, artifact: LocalArtifact) -> None:
    digest, _ = push(artifact, at(registry, "models/faq:v1"))
    content = list_content(artifact.root)
    assert pull(registry, "models/faq:v1") == pull(registry, f"models/faq@{digest}") == content


def test_a_second_push_sends_nothing(registry: RegistryServer, artifact: LocalArtifact) -> None:
    location = at(registry, "models/twice:v1")
    digest, _ = push(artifact, location)
    assert push(artifact, location) == (digest, [f"{location.uri} is complete: {digest}"])


def test_a_tag_moves_to_another_artifact_of_the_job(registry: RegistryServer, tmp_path: Path) -> None:
    first = load_artifact(write_artifact(tmp_path / "first", "both"))
    second = load_artifact(write_artifact(tmp_path / "second", seed=1))
    before, _ = push(first, at(registry, "models/moved:v1"))
    push(second, at(registry, "models/moved:v1"))
    assert pull(registry, "models/moved:v1") == list_content(second.root)
    assert pull(registry, f"models/moved@{before}") == list_content(first.root)


def test_the_tag_of_another_job_or_program_is_not_replaced(registry: RegistryServer, tmp_path: Path) -> None:
    push(load_artifact(write_artifact(tmp_path / "first", job="other")), at(registry, "models/kept:v1"))
    (tmp_path / "file").write_text("x")
    ArtifactPusher(at(registry, "models/kept:v2"), print).push({"file": tmp_path / "file"})
    for tag, text in (("v1", "holds the artifact of job other"), ("v2", "holds what is no artifact of a job")):
        with pytest.raises(HoneError, match=text) as caught:
            push(load_artifact(write_artifact(tmp_path / tag, seed=1)), at(registry, f"models/kept:{tag}"))
        assert caught.value.reason is DESTINATION_OCCUPIED
        assert caught.value.message.startswith(f"spec.output.push[0].oci is {registry.host}/models/kept:{tag}, which")


def test_a_registry_that_wants_a_login_gets_it_from_the_secret(
    locked_registry: RegistryServer, artifact: LocalArtifact
) -> None:
    push(artifact, at(locked_registry, "models/faq:v1", LOGIN))
    with pytest.raises(HoneError) as caught:
        push(artifact, at(locked_registry, "models/faq:v1", {**LOGIN, "password": "hunter2"}))
    assert caught.value.reason is STORE_UNAUTHORIZED
    assert "hunter2" not in caught.value.format_message()


def test_the_command_pushes_to_a_registry(registry: RegistryServer, artifact: LocalArtifact, tmp_path: Path) -> None:
    job = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "faq"},
        "spec": {
            "model": {"name": "me/tiny"},
            "dataset": {"name": "me/rows"},
            "output": {"push": [{"oci": f"{registry.host}/models/command:v1", "endpoint": registry.url}]},
        },
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    log = tmp_path / "log"
    manifest = str(tmp_path / "job.json")
    assert main([str(artifact.root), "--manifest", manifest, "--termination-log", str(log)]) == 0
    [result] = json.loads(log.read_text())["pushed"]
    assert pull(registry, f"models/command@{result['revision']}") == list_content(artifact.root)
    assert main([str(artifact.root), f"oci://{registry.host}/models/laptop:v1"]) == 0
    assert pull(registry, "models/laptop:v1") == list_content(artifact.root)
