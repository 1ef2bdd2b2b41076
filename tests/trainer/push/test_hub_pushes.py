"""Pushes to a stand-in of the hub: one commit, repeated without a byte, and with faults of the hub."""

import socket
from functools import partial
from pathlib import Path

import pytest
from hone_api.reasons import (
    DESTINATION_OCCUPIED,
    DESTINATION_REFUSED,
    HUB_UNAUTHORIZED,
    HUB_UNREACHABLE,
    HoneError,
    Reason,
)
from hone_trainer.push.artifact import LocalArtifact, load_artifact
from hone_trainer.push.hub import ATTEMPTS, HUB_MANIFEST, HubPush
from hub_writes import TOKEN, Repository, WritableHub
from huggingface_hub import constants
from killed import Child
from long_matrix import is_long, make_random
from pushed_artifacts import list_content, write_artifact

SHARDS = (200_000, 100_000, 50_000)
KILLS = {False: 20, True: 200}


def push(artifact: LocalArtifact, repo: str = "me/faq", token: str | None = TOKEN) -> str:
    where, field = f"spec.output.push[0].hub.repo is {repo}", "spec.output.push[0].hub.tokenSecret"
    return HubPush(repo, True, token, where, field, lambda note: None, first_wait_seconds=0.001).push(artifact)


def refused(artifact: LocalArtifact, repo: str = "me/faq", token: str | None = TOKEN) -> tuple[Reason, str]:
    with pytest.raises(HoneError) as caught:
        push(artifact, repo, token)
    assert "secret" not in caught.value.format_message()
    assert TOKEN not in caught.value.format_message()
    return caught.value.reason, caught.value.format_message()


def expected(root: Path, main: str) -> dict[str, bytes]:
    content = {name.removeprefix(f"{main}/"): data for name, data in list_content(root).items()}
    return {HUB_MANIFEST if name == "manifest.json" else name: data for name, data in content.items()}


@pytest.mark.parametrize(
    ("kind", "main"), [("adapter", "adapter"), ("model", "model"), ("merged", "merged"), ("both", "merged")]
)
def test_the_model_or_adapter_is_at_the_root_of_a_private_repository(
    hub: WritableHub, tmp_path: Path, kind: str, main: str
) -> None:
    root = write_artifact(tmp_path / "artifact", kind, shards=SHARDS)  # type: ignore[arg-type]
    commit = push(load_artifact(root))
    repository = hub.repositories["me/faq"]
    assert repository.files == expected(root, main)
    assert repository.is_private
    assert [oid for oid, _ in repository.commits][1:] == [commit]


def test_a_second_push_sends_nothing(hub: WritableHub, artifact: LocalArtifact) -> None:
    commit = push(artifact)
    before = hub.received_bytes
    hub.asked.clear()
    assert push(artifact) == commit
    assert hub.received_bytes == before
    assert {method for method, _ in hub.asked} <= {"GET", "HEAD"}


def test_another_artifact_of_the_job_replaces_the_first_in_one_commit(hub: WritableHub, tmp_path: Path) -> None:
    push(load_artifact(write_artifact(tmp_path / "first", "both", shards=SHARDS)))
    second = write_artifact(tmp_path / "second", "merged", seed=1, shards=(1000,))
    push(load_artifact(second))
    assert hub.repositories["me/faq"].files == expected(second, "merged")
    assert len(hub.repositories["me/faq"].commits) == 3


def test_the_artifact_of_another_job_is_not_replaced(hub: WritableHub, tmp_path: Path) -> None:
    push(load_artifact(write_artifact(tmp_path / "first", job="other")))
    reason, sentence = refused(load_artifact(write_artifact(tmp_path / "second", seed=1)))
    assert reason is DESTINATION_OCCUPIED
    assert "of job other" in sentence


@pytest.mark.parametrize(("file", "is_refused"), [("model.safetensors", True), ("LICENSE", False)])
def test_a_repository_with_a_model_of_somebody_is_not_overwritten(
    hub: WritableHub, artifact: LocalArtifact, file: str, is_refused: bool
) -> None:
    hub.repositories["me/faq"] = Repository(is_private=False)
    hub.repositories["me/faq"].commit({file: b"mine"})
    if is_refused:
        assert refused(artifact)[0] is DESTINATION_OCCUPIED
        assert hub.repositories["me/faq"].files == {file: b"mine"}
    else:
        push(artifact)
        assert hub.repositories["me/faq"].files[file] == b"mine"


def test_a_token_that_may_not_write_is_unauthorized(hub: WritableHub, artifact: LocalArtifact) -> None:
    for repo, token in (("me/faq", "hf_other"), ("others/faq", TOKEN)):
        reason, sentence = refused(artifact, repo, token)
        assert reason is HUB_UNAUTHORIZED
        assert f"Give a token that may write to {repo}, in spec.output.push[0].hub.tokenSecret." in sentence


def test_a_token_that_may_only_read_is_unauthorized(hub: WritableHub, artifact: LocalArtifact) -> None:
    hub.spoil = lambda method, path: 403 if "/preupload/" in path or "/commit/" in path else None
    assert refused(artifact)[0] is HUB_UNAUTHORIZED


def test_a_card_that_the_hub_refuses_is_named(hub: WritableHub, tmp_path: Path) -> None:
    reason, sentence = refused(load_artifact(write_artifact(tmp_path / "broken", job="broken")))
    assert reason is DESTINATION_REFUSED
    assert '"license" must be one of a list' in sentence


def test_a_hub_that_stays_down_is_unreachable(hub: WritableHub, artifact: LocalArtifact) -> None:
    for fault in (503, 429, "cut"):
        hub.spoil = lambda method, path, fault=fault: fault  # type: ignore[misc]
        assert refused(artifact)[0] is HUB_UNREACHABLE


@pytest.mark.parametrize("part_bytes", [0, 60_000])
def test_faults_at_random_requests_change_nothing(hub: WritableHub, tmp_path: Path, part_bytes: int) -> None:
    """Rate limits, failures, cut uploads, and answers that are lost after the commit: fewer than a push has tries."""
    chance = make_random(f"faults of the hub {part_bytes}")
    hub.part_bytes = part_bytes
    root = write_artifact(tmp_path / "model", "model", shards=SHARDS)

    faults: list[int | str] = []

    def spoil(method: str, path: str) -> int | str | None:
        if len(faults) == ATTEMPTS - 1 or chance.random() > 0.15:
            return None
        faults.append(chance.choice([503, 429, "cut", "lost"]))
        return faults[-1]

    hub.spoil = spoil
    commit = push(load_artifact(root))
    repository = hub.repositories["me/faq"]
    assert repository.files == expected(root, "model")
    assert [oid for oid, _ in repository.commits][1:] == [commit]


def test_a_commit_of_somebody_else_meanwhile_is_kept(hub: WritableHub, artifact: LocalArtifact) -> None:
    push_once = {"/commit/"}

    def spoil(method: str, path: str) -> None:
        if any(part in path for part in push_once):
            push_once.clear()
            repository = hub.repositories["me/faq"]
            repository.commit(repository.commits[-1][1] | {"LICENSE": b"mine"})

    hub.spoil = spoil
    push(artifact)
    assert hub.repositories["me/faq"].files == expected(artifact.root, "adapter") | {"LICENSE": b"mine"}


def test_pushes_killed_at_random_moments_end_in_one_commit(hub: WritableHub, tmp_path: Path) -> None:
    chance = make_random("killed pushes to the hub")
    artifact = load_artifact(write_artifact(tmp_path / "model", "model", shards=SHARDS))
    wanted = expected(artifact.root, "model")
    killed = 0
    while killed < KILLS[is_long()]:
        if Child(partial(push, artifact)).kill_after(chance.uniform(0, 0.25)):
            killed += 1
        else:
            hub.repositories.clear()
            hub.objects.clear()
        for repository in list(hub.repositories.values()):
            assert repository.files in ({}, wanted)
            assert len(repository.commits) <= 2
    commit = push(artifact)
    assert hub.repositories["me/faq"].files == wanted
    assert [oid for oid, _ in hub.repositories["me/faq"].commits][1:] == [commit]


@pytest.mark.parametrize("phase", ["from the begin", "in the middle"])
def test_a_hub_that_is_silent_ends_the_push(
    hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    artifact = load_artifact(write_artifact(tmp_path / "model", "model", shards=SHARDS))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts connections, and nobody answers
        if phase == "in the middle":
            monkeypatch.setattr(HubPush, "_find_head", lambda self, api: "0" * 40)
            monkeypatch.setattr(HubPush, "_list_held", lambda self, api, commit: {})
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        pushed = HubPush("me/faq", True, TOKEN, "here", "there", lambda note: None, 0.001, silence_seconds=0.05)
        with pytest.raises(HoneError) as caught:
            pushed.push(artifact)
    assert caught.value.reason is HUB_UNREACHABLE
