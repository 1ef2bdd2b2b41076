"""Models and datasets on the hub: found, refused, unreachable. The hub is a small HTTP server of the tests' own."""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hone_api.reasons import HUB_UNAUTHORIZED, HUB_UNREACHABLE, HoneError
from hone_trainer.inputs.hub import resolve_commit
from hub_server import COMMIT, STUCK_SECONDS, Hub
from huggingface_hub import constants

Job = Callable[..., dict[str, Any]]
# Less than huggingface_hub takes to try five times, and more than a busy machine delays a run.
RETRIES_SECONDS = 20


@pytest.fixture(scope="module")
def hub(claim: Path) -> Iterator[Hub]:
    server = Hub(claim / "tiny")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def online(make_worker: Callable[..., Any], hub: Hub) -> Any:
    """Start a worker whose hub is the test's."""
    return make_worker("online", {"HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "1"})


@pytest.fixture(scope="module")
def cut_off(make_worker: Callable[..., Any], claim: Path) -> Any:
    """Start a worker whose hub does not answer, with me/tiny and the dataset me/rows in its cache."""
    worker = make_worker("cut-off", {"HF_ENDPOINT": "http://127.0.0.1:9"})
    for folder, files in (("models--me--tiny", claim / "tiny"), ("datasets--me--rows", None)):
        cached = worker.folder / "hf/hub" / folder
        (cached / "refs").mkdir(parents=True)
        (cached / "refs/main").write_text(COMMIT)
        snapshot = cached / "snapshots" / COMMIT
        if files:
            shutil.copytree(files, snapshot)
        else:
            snapshot.mkdir(parents=True)
            for split in ("train", "test"):
                shutil.copy(claim / "text.jsonl", snapshot / f"{split}.jsonl")
    return worker


def test_a_model_is_downloaded_at_the_commit_of_its_revision(online: Any, hub: Hub, job: Job, claim: Path) -> None:
    done = online.run(job(model={"name": "me/tiny"}), claims={"claim": claim})
    assert done.code == 0, done.log
    assert done.manifest["baseModel"] == {"name": "me/tiny", "revision": COMMIT}
    assert done.message["artifact"]["baseModel"] == "me/tiny"
    assert done.message["artifact"]["baseRevision"] == COMMIT
    adapter = json.loads((done.output / "adapter/adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("me/tiny", COMMIT)
    assert f"/me/tiny/resolve/{COMMIT}/model.safetensors" in hub.requests


@pytest.mark.parametrize(
    ("name", "code", "reason", "words"),
    [
        ("me/missing", 66, "NotFound", "the hub has no such"),
        ("me/secret", 67, "HubUnauthorized", "does not exist or is private"),
        ("me/gated", 67, "HubUnauthorized", "is gated"),
        ("me/down", 71, "HubUnreachable", "can't be reached"),
        ("me/busy", 71, "HubUnreachable", "can't be reached"),
        ("me/broken", 71, "HubUnreachable", "can't be reached"),
    ],
)
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_refusals_of_the_hub_are_named(
    online: Any, job: Job, claim: Path, kind: str, name: str, code: int, reason: str, words: str
) -> None:
    failed = online.run(job(**{kind: {"name": name}}), claims={"claim": claim})
    reason = kind.capitalize() + reason if reason == "NotFound" else reason
    assert (failed.code, failed.message["reason"]) == (code, reason), failed.log
    assert f"spec.{kind}.name is {name}" in failed.message["message"]
    assert words in failed.message["message"]


@pytest.mark.parametrize("name", ["me/cut", "me/slow"])
def test_a_download_that_does_not_end_is_named(online: Any, job: Job, claim: Path, name: str) -> None:
    failed = online.run(job(model={"name": name}), claims={"claim": claim})
    assert (failed.code, failed.message["reason"]) == (71, "HubUnreachable"), failed.log
    assert f"spec.model.name is {name}" in failed.message["message"]
    assert "Traceback" not in failed.log


def test_a_download_that_is_cut_once_is_continued(online: Any, hub: Hub, job: Job, claim: Path) -> None:
    done = online.run(job(model={"name": "me/once"}), claims={"claim": claim})
    assert done.code == 0, done.log
    assert len([path for path in hub.requests if path == f"/me/once/resolve/{COMMIT}/model.safetensors"]) > 2
    downloaded = online.folder / f"hf/hub/models--me--once/snapshots/{COMMIT}/model.safetensors"
    assert downloaded.read_bytes() == (claim / "tiny/model.safetensors").read_bytes()


def test_a_preparation_that_waits_for_the_hub_can_be_stopped(
    make_forks: Callable[..., Any], hub: Hub, job: Job, kill: Any, tmp_path: Path
) -> None:
    """Stop during a download, although huggingface_hub would wait for the threads that download."""
    there = make_forks({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": str(STUCK_SECONDS)})
    told = kill(signal.SIGTERM, "downloading", delay=0.5)
    stopped = there.run(job(model={"name": "me/stuck"}), tmp_path / "out", told, command="prepare")
    [began] = [at for at, kind, phase in stopped.events if (kind, phase) == ("begin", "downloading")]
    assert time.monotonic() - began < STUCK_SECONDS / 2
    assert (stopped.code, stopped.message["reason"]) == (75, "Interrupted"), stopped.log


def test_a_missing_revision_is_named(online: Any, job: Job, claim: Path) -> None:
    failed = online.run(job(model={"name": "me/tiny", "revision": "v9"}), claims={"claim": claim})
    assert (failed.code, failed.message["reason"]) == (66, "ModelNotFound")
    assert "spec.model.revision is v9" in failed.message["message"]


def test_files_that_are_not_in_the_cache_need_the_hub(cut_off: Any, job: Job, claim: Path) -> None:
    failed = cut_off.run(job(model={"name": "me/other"}), claims={"claim": claim})
    assert (failed.code, failed.message["reason"]) == (71, "HubUnreachable"), failed.log
    assert "spec.model.name is me/other, which is not in the cache" in failed.message["message"]


def test_cached_files_are_trained_on_without_the_hub_and_without_waiting(cut_off: Any, job: Job, claim: Path) -> None:
    began = time.monotonic()
    here = cut_off.run(job(), claims={"claim": claim})
    local = time.monotonic() - began
    began = time.monotonic()
    done = cut_off.run(job(model={"name": "me/tiny"}, dataset={"name": "me/rows"}), claims={"claim": claim})
    cached = time.monotonic() - began
    assert done.code == 0, done.log
    assert done.manifest["baseModel"] == {"name": "me/tiny", "revision": COMMIT}
    assert cached < local + RETRIES_SECONDS
    assert (here.output / "adapter/adapter_model.safetensors").read_bytes() == (
        done.output / "adapter/adapter_model.safetensors"
    ).read_bytes()
    missing = cut_off.run(job(dataset={"name": "me/rows", "split": "valid"}), claims={"claim": claim})
    assert (missing.code, missing.message["reason"]) == (66, "DatasetNotFound")
    assert "spec.dataset.split is valid" in missing.message["message"]


def test_a_separate_split_is_evaluated_on(cut_off: Any, job: Job, claim: Path) -> None:
    done = cut_off.run(job(dataset={"name": "me/rows", "evalSplit": "test"}), claims={"claim": claim})
    assert done.code == 0, done.log
    assert "24 to train on, 24 to evaluate on" in done.log
    assert done.metrics[-1]["eval_loss"] > 0
    missing = cut_off.run(job(dataset={"name": "me/rows", "evalSplit": "valid"}), claims={"claim": claim})
    assert (missing.code, missing.message["reason"]) == (66, "DatasetNotFound")
    assert "spec.dataset.evalSplit is valid" in missing.message["message"]


def test_prepared_rows_are_trained_on_without_the_hub_and_without_a_token(
    make_worker: Callable[..., Any], job: Job, claim: Path
) -> None:
    hub = Hub(claim / "tiny", token="hf_secret")
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    with_token = make_worker("with-token", {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"})
    document = job(model={"name": "me/tiny"})
    prepared = with_token.run(document, claims={"claim": claim}, command="prepare")
    assert (prepared.code, prepared.message["reason"]) == (0, "Prepared"), prepared.log
    hub.shutdown()
    hub.server_close()

    without = make_worker("without-token", {"HF_HOME": str(with_token.folder / "hf"), "HF_ENDPOINT": hub.url})
    done = without.run(document, claims={"claim": claim}, output=prepared.output)
    assert done.code == 0, done.log
    assert done.manifest["baseModel"]["revision"] == COMMIT


def test_without_the_token_a_private_model_is_refused(make_worker: Callable[..., Any], job: Job, claim: Path) -> None:
    hub = Hub(claim / "tiny", token="hf_secret")
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    refused = make_worker("refused", {"HF_ENDPOINT": hub.url}).run(
        job(model={"name": "me/tiny"}), claims={"claim": claim}
    )
    assert (refused.code, refused.message["reason"]) == (67, "HubUnauthorized"), refused.log
    hub.shutdown()
    hub.server_close()


@pytest.mark.parametrize("token", ["hf_opensesame\u200b1", "hf_opensesame\u00e9", "hf_open sesame"])
def test_a_token_that_no_header_takes_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HoneError) as caught:
        resolve_commit("model", "me/tiny", "main")
    assert caught.value.reason is HUB_UNAUTHORIZED
    assert "the hub's token has a character that no token has" in caught.value.message
    assert "sesame" not in caught.value.format_message()


def test_the_password_of_a_mirror_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:opensesame@127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HoneError) as caught:
        resolve_commit("model", "me/tiny", "main")
    assert caught.value.reason is HUB_UNREACHABLE
    assert "the hub http://…@127.0.0.1:9 can't be reached" in caught.value.message
    assert "opensesame" not in caught.value.format_message()
