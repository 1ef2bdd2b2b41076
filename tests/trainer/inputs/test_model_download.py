"""The program that downloads the model of a service before its engine starts, against the stand-in for the hub."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hone_api import containers
from hone_api.byte_sizes import format_bytes
from hone_trainer.inputs.download_bar import DownloadBar
from hone_trainer.progress import meter
from hub_server import COMMIT, STUCK_SECONDS, Hub
from huggingface_hub import snapshot_download
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
from transformers import AutoModelForCausalLM

WEIGHTS = f"/me/tiny/resolve/{COMMIT}/model.safetensors"
CONFIG = f"/me/tiny/resolve/{COMMIT}/config.json"
TOKEN = "hf_secret"
# Within which a program ends, and which a wait for the hub is longer than.
STOP_SECONDS = STUCK_SECONDS / 2


@contextmanager
def serving(model: Path, token: str | None = None) -> Iterator[Hub]:
    hub = Hub(model, token)
    threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def hub(claim: Path) -> Iterator[Hub]:
    with serving(claim / "tiny") as found:
        yield found


@dataclass(frozen=True)
class Ended:
    """How the program ended: `reason` and `sentence` of its failure line, empty after a success."""

    code: int
    log: str

    @property
    def failure(self) -> containers.Failure:
        [found] = containers.find_failures(self.log)
        assert self.log.rstrip().endswith(found.sentence), "the failure line is the last one"
        return found


class Pod:
    """The init container of a pod: its cache, which pods may share, and the volume for its link."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.cache = cache or folder / "cache"
        self.link = folder / "downloaded/model"
        self.link.parent.mkdir(parents=True)

    def start(self, hub_url: str, name: str = "me/tiny", *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        given = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        more = {"HF_HOME": str(self.cache), "HF_ENDPOINT": hub_url, "HF_HUB_DOWNLOAD_TIMEOUT": "1", **environ}
        command = [*containers.build_module_command(containers.MODEL_DOWNLOAD)[1:], name, "--link", str(self.link)]
        return subprocess.Popen(
            [sys.executable, *command, *arguments], env=given | more, stderr=subprocess.PIPE, text=True
        )

    def run(self, hub_url: str, name: str = "me/tiny", *arguments: str, **environ: str) -> Ended:
        process = self.start(hub_url, name, *arguments, **environ)
        _, log = process.communicate(timeout=120)
        return Ended(process.returncode, log)


@pytest.fixture
def make_pod(tmp_path: Path) -> Callable[..., Pod]:
    """Make pods that share a cache."""
    return lambda name="pod": Pod(tmp_path / name, tmp_path / "cache")


def requests_for(hub: Hub, suffix: str) -> list[str]:
    return [path for path in hub.requests if path.endswith(suffix)]


def test_a_gated_model_is_downloaded_with_the_token_and_loaded_without_the_hub(
    make_pod: Callable[..., Pod], claim: Path
) -> None:
    pod = make_pod()
    with serving(claim / "tiny", TOKEN) as hub:
        done = pod.run(hub.url, HF_TOKEN=TOKEN)
    assert done.code == 0, done.log
    assert TOKEN not in done.log
    assert pod.link.resolve() == (pod.cache / "hub/models--me--tiny/snapshots" / COMMIT).resolve()
    assert pod.link.readlink().is_absolute()
    assert (pod.cache / "hub/models--me--tiny/refs/main").read_text() == COMMIT
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (pod.link / file).read_bytes() == (claim / "tiny" / file).read_bytes()
    assert AutoModelForCausalLM.from_pretrained(pod.link, local_files_only=True).num_parameters() > 0


@pytest.mark.parametrize(
    ("name", "code", "reason", "words"),
    [
        ("me/missing", 66, "ModelNotFound", "the hub has no such model"),
        ("me/secret", 67, "HubUnauthorized", "does not exist or is private"),
        ("me/gated", 67, "HubUnauthorized", "is gated"),
        ("me/down", 71, "HubUnreachable", "can't be reached"),
        ("me/cut", 71, "HubUnreachable", "can't be reached"),
    ],
)
def test_a_download_that_fails_is_named(
    make_pod: Callable[..., Pod], hub: Hub, name: str, code: int, reason: str, words: str
) -> None:
    pod = make_pod()
    failed = pod.run(hub.url, name)
    assert (failed.code, failed.failure.reason) == (code, reason), failed.log
    assert failed.failure.sentence.startswith(f"spec.model.name is {name}")
    assert words in failed.failure.sentence
    assert "Traceback" not in failed.log
    assert not os.path.lexists(pod.link)


def test_a_wrong_token_is_named_and_not_shown(make_pod: Callable[..., Pod], claim: Path) -> None:
    with serving(claim / "tiny", TOKEN) as hub:
        failed = make_pod().run(hub.url, HF_TOKEN="hf_another")
    assert (failed.code, failed.failure.reason) == (67, "HubUnauthorized"), failed.log
    assert "spec.tokenSecret" in failed.failure.sentence
    assert "hf_another" not in failed.log


def test_a_missing_revision_is_named(make_pod: Callable[..., Pod], hub: Hub) -> None:
    failed = make_pod().run(hub.url, "me/tiny", "--revision", "v9")
    assert (failed.code, failed.failure.reason) == (66, "ModelNotFound")
    assert "spec.model.revision is v9" in failed.failure.sentence


def test_a_connection_that_is_cut_once_is_continued(make_pod: Callable[..., Pod], hub: Hub, claim: Path) -> None:
    pod = make_pod()
    done = pod.run(hub.url, "me/once")
    assert done.code == 0, done.log
    assert (pod.link / "model.safetensors").read_bytes() == (claim / "tiny/model.safetensors").read_bytes()


def test_the_next_start_downloads_only_what_is_missing(make_pod: Callable[..., Pod], claim: Path) -> None:
    """The weights fail at the first start, the other files were complete."""
    with serving(claim / "tiny") as hub:
        hub.is_cut = True
        failed = make_pod().run(hub.url)
        assert (failed.code, failed.failure.reason) == (71, "HubUnreachable"), failed.log
        assert requests_for(hub, CONFIG)
        hub.is_cut = False
        hub.requests.clear()
        pod = make_pod("again")
        done = pod.run(hub.url)
    assert done.code == 0, done.log
    assert requests_for(hub, WEIGHTS)
    assert not requests_for(hub, CONFIG)
    assert (pod.link / "model.safetensors").read_bytes() == (claim / "tiny/model.safetensors").read_bytes()
    assert not list(pod.cache.rglob("*.incomplete"))


def test_a_second_start_downloads_no_file(make_pod: Callable[..., Pod], hub: Hub) -> None:
    assert make_pod().run(hub.url).code == 0
    hub.requests.clear()
    again = make_pod("again").run(hub.url)
    assert again.code == 0, again.log
    assert not requests_for(hub, ".json")
    assert not requests_for(hub, ".safetensors")


def test_a_second_start_needs_no_hub(make_pod: Callable[..., Pod], claim: Path) -> None:
    with serving(claim / "tiny") as hub:
        assert make_pod().run(hub.url).code == 0
    again = make_pod("again")
    done = again.run(hub.url)
    assert done.code == 0, done.log
    assert "is taken from the cache: the hub can't be reached" in done.log
    assert (again.link / "config.json").is_file()
    pinned = make_pod("pinned").run(hub.url, "me/tiny", "--revision", COMMIT)
    assert pinned.code == 0, pinned.log
    other = make_pod("other").run(hub.url, "me/tiny", "--revision", "v1")
    assert (other.code, other.failure.reason) == (71, "HubUnreachable")
    assert "which is not in the cache" in other.failure.sentence


def test_a_cluster_without_a_hub_uses_the_cache_alone(make_pod: Callable[..., Pod], hub: Hub) -> None:
    assert make_pod().run(hub.url).code == 0
    hub.requests.clear()
    done = make_pod("again").run(hub.url, HF_HUB_OFFLINE="1")
    assert done.code == 0, done.log
    assert hub.requests == []
    other = make_pod("other").run(hub.url, "me/other", HF_HUB_OFFLINE="1")
    assert (other.code, other.failure.reason) == (71, "HubUnreachable")


def test_a_start_without_the_hub_refuses_half_a_model(make_pod: Callable[..., Pod], claim: Path) -> None:
    with serving(claim / "tiny") as hub:
        assert make_pod().run(hub.url).code == 0
    pod = make_pod("again")
    snapshot = pod.cache / "hub/models--me--tiny/snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    failed = pod.run(hub.url)
    assert (failed.code, failed.failure.reason) == (71, "HubUnreachable"), failed.log


def test_pods_that_start_together_share_a_cache(make_pod: Callable[..., Pod], hub: Hub, claim: Path) -> None:
    pods = [make_pod(f"pod-{number}") for number in range(3)]
    started = [pod.start(hub.url) for pod in pods]
    for process, pod in zip(started, pods, strict=True):
        _, log = process.communicate(timeout=120)
        assert process.returncode == 0, log
        assert (pod.link / "model.safetensors").read_bytes() == (claim / "tiny/model.safetensors").read_bytes()
    assert not list(pods[0].cache.rglob("*.incomplete"))
    assert [path.name for path in (pods[0].cache / "hub/models--me--tiny/refs").iterdir()] == ["main"]


def test_weights_that_were_damaged_in_the_cache_are_named(make_pod: Callable[..., Pod], hub: Hub) -> None:
    pod = make_pod()
    assert pod.run(hub.url).code == 0
    damaged = (pod.link / "model.safetensors").resolve()
    os.truncate(damaged, 1000)
    failed = pod.run(hub.url)
    assert (failed.code, failed.failure.reason) == (66, "ModelInvalid")
    assert f"Remove {damaged} and " in failed.failure.sentence
    damaged.unlink()
    (pod.cache / "hub/models--me--tiny/snapshots" / COMMIT / "model.safetensors").unlink()
    assert pod.run(hub.url).code == 0


@pytest.mark.parametrize(("shards", "words"), [([], "there are no weights"), (["a.safetensors"], "lacks 1 of 1 files")])
def test_a_repository_without_weights_is_named(
    make_pod: Callable[..., Pod], claim: Path, tmp_path: Path, shards: list[str], words: str
) -> None:
    folder = shutil.copytree(claim / "tiny", tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    if shards:
        index = {"weight_map": dict.fromkeys(shards, "a.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with serving(folder) as hub:
        failed = make_pod().run(hub.url)
    assert (failed.code, failed.failure.reason) == (66, "ModelInvalid")
    assert words in failed.failure.sentence


@pytest.mark.parametrize(
    ("file", "fetched"), [("pytorch_model.bin", True), ("consolidated.safetensors", True), ("consolidated.pth", False)]
)
def test_another_format_is_downloaded_where_there_are_no_safetensors(
    make_pod: Callable[..., Pod], claim: Path, tmp_path: Path, file: str, fetched: bool
) -> None:
    folder = shutil.copytree(claim / "tiny", tmp_path / "other")
    shutil.copy(folder / "model.safetensors", folder / file)
    with serving(folder) as hub:
        assert make_pod().run(hub.url).code == 0
        assert not requests_for(hub, file), "the same weights as safetensors are there"
        (folder / "model.safetensors").unlink()
        pod = Pod(tmp_path / "alone")
        assert (pod.run(hub.url).code == 0) == fetched
    assert (pod.link / file).is_file() == fetched


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system takes root")
def test_a_full_cache_is_named(make_pod: Callable[..., Pod], hub: Hub, tmp_path: Path) -> None:
    pod = make_pod()
    pod.cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "hone-test", str(pod.cache)], check=True)
    try:
        failed = pod.run(hub.url)
    finally:
        subprocess.run(["umount", "--lazy", str(pod.cache)], check=True)
    assert (failed.code, failed.failure.reason) == (74, "DiskFull"), failed.log
    assert str(pod.cache) in failed.failure.sentence
    assert "are free on its volume" in failed.failure.sentence


def test_a_download_can_be_stopped(make_pod: Callable[..., Pod], hub: Hub) -> None:
    process = make_pod().start(hub.url, "me/stuck", HF_HUB_DOWNLOAD_TIMEOUT=str(STUCK_SECONDS))
    end = time.monotonic() + 120
    while not requests_for(hub, "model.safetensors"):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=STOP_SECONDS)
    assert process.returncode == 75, log


def test_what_a_killed_download_left_is_removed_a_day_later(make_pod: Callable[..., Pod], hub: Hub) -> None:
    pod = make_pod()
    old, new = (pod.cache / "hub/models--me--tiny/blobs" / f"{name}.incomplete" for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * 24 * 3600))
    assert pod.run(hub.url).code == 0
    assert (old.exists(), new.exists()) == (False, True)


def test_a_long_download_reports_its_size(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bars are huggingface_hub's own: this fails where their names or their totals change."""
    monkeypatch.setattr(meter, "INTERVAL_SECONDS", 0.0)
    disable_progress_bars()
    try:
        folder = snapshot_download(
            "me/tiny", revision=COMMIT, endpoint=hub.url, cache_dir=tmp_path, tqdm_class=DownloadBar
        )
    finally:
        enable_progress_bars()
    size = format_bytes(sum(path.stat().st_size for path in Path(folder).iterdir()))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("downloaded ")]
    assert lines[-1].startswith(f"downloaded {size} of {size}, ")


def test_a_download_takes_no_memory_for_torch(make_pod: Callable[..., Pod], hub: Hub) -> None:
    done = make_pod().run(hub.url, PYTHONPROFILEIMPORTTIME="1")
    assert done.code == 0
    imported = {line.rpartition("|")[2].strip() for line in done.log.splitlines() if line.startswith("import time:")}
    assert "huggingface_hub" in imported
    assert not imported & {"torch", "transformers", "datasets"}
