"""Every reason of the catalogue that has an exit code, provoked for real. A reason that nothing provokes fails."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from broken_model import make_broken_model
from hone_api.reasons import CATALOGUE, Reason

Job = Callable[..., dict[str, Any]]

# The loss grows from 6 to 200 in some 40 steps, and the gradients then overflow.
EXPLODING = {"optim": "sgd", "learningRate": 1.0, "maxGradNorm": 0, "extra": {"optimArgs": "momentum=0.99"}}


class Refusing(BaseHTTPRequestHandler):
    """A hub that refuses every user."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def there(make_forks: Callable[..., Any]) -> Iterator[Any]:
    """Return forks whose hub refuses everything."""
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield make_forks({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}"})
    hub.shutdown()


class Provoke:
    """Makes each failure happen: a method for each reason, called like it."""

    def __init__(self, here: Any, there: Any, kill: Any, job: Job, claim: Path, folder: Path) -> None:
        self._forks, self._there, self._kill = here, there, kill
        self._job, self._claim, self._folder = job, claim, folder
        self.out = folder / "out"

    def run(self, *kills: Any, **spec: Any) -> Any:
        return self._forks.run(self._job(**spec), self.out, *kills)

    def rows(self, text: str, **dataset: Any) -> Any:
        manifest = [self._job(dataset={"configMap": {"name": "rows", "key": "a.jsonl"}, **dataset})]
        manifest.append({"kind": "ConfigMap", "metadata": {"name": "rows"}, "data": {"a.jsonl": text}})
        return self._forks.run(manifest, self.out)

    def model(self, path: str, **spec: Any) -> Any:
        return self.run(model={"claim": {"name": "claim", "path": path}}, **spec)

    def InvalidSpec(self) -> tuple[Any, str]:
        return self.run(training={"learningRate": 7}), "spec.training.learningRate is 7"

    def DatasetColumnMissing(self) -> tuple[Any, str]:
        return self.rows('{"body": "a"}\n', format="text"), "body"

    def DatasetEmpty(self) -> tuple[Any, str]:
        return self.rows("\n"), "a.jsonl has no rows"

    def DatasetInvalid(self) -> tuple[Any, str]:
        return self.rows('{"text": "a"}\n{"text": 7}\n'), "a.jsonl, line 2, column text holds 7"

    def DatasetNotFound(self) -> tuple[Any, str]:
        return self.run(
            dataset={"claim": {"name": "claim", "path": "no.jsonl"}}
        ), "spec.dataset.claim.path is 'no.jsonl'"

    def ChatTemplateMissing(self) -> tuple[Any, str]:
        dataset = {"claim": {"name": "claim", "path": "chat.jsonl"}}
        return self.model("no-template", dataset=dataset), "no chat template"

    def AllRowsTruncated(self) -> tuple[Any, str]:
        dataset = {"claim": {"name": "claim", "path": "pairs.jsonl"}}
        return self.run(dataset=dataset, training={"maxLength": 2}), "spec.training.maxLength is 2"

    def ModelNotFound(self) -> tuple[Any, str]:
        return self.model("nowhere"), "spec.model.claim.path is 'nowhere'"

    def ModelInvalid(self) -> tuple[Any, str]:
        return self.model("truncated"), "spec.model.claim.path is"

    def HubUnauthorized(self) -> tuple[Any, str]:
        failed = self._there.run(self._job(model={"name": "me/secret"}), self.out)
        return failed, "spec.model.name is me/secret"

    def HubUnreachable(self) -> tuple[Any, str]:
        return self.run(model={"name": "me/other"}), "spec.model.name is me/other"

    def NonFiniteLoss(self) -> tuple[Any, str]:
        failed = self.run(method="full", training={"maxSteps": 60, **EXPLODING}, checkpoint={"saveSteps": 2})
        kept = sorted(folder.name for folder in (self.out / "checkpoints").glob("step-*"))
        last = failed.metrics[-1]["step"]
        assert len(kept) == 2, kept
        assert last - 3 < int(kept[-1].partition("-")[2]) < last
        return failed, f"at step {last}, with spec.training.learningRate 1"

    def OutOfMemory(self) -> tuple[Any, str]:
        rows = self._job(method="full", training={"perDeviceTrainBatchSize": 1024, "maxSteps": 1})
        text = json.dumps({"text": "memory " * 400}) + "\n"
        rows["spec"]["dataset"] = {"configMap": {"name": "rows", "key": "a.jsonl"}}
        data = {"kind": "ConfigMap", "metadata": {"name": "rows"}, "data": {"a.jsonl": text * 1024}}
        failed = self._forks.run([rows, data], self.out, limit=2**31)
        assert "set spec.method to lora" in failed.message["message"]
        return failed, "spec.training.perDeviceTrainBatchSize, which is 1024"

    def ModelTooLarge(self) -> tuple[Any, str]:
        failed = self._forks.run(self._job(method="full", resources={"gpus": 1}), self.out, gpu=2**20)
        return failed, "a small GPU has 0.0 GiB"

    def GpuNotUsable(self) -> tuple[Any, str]:
        # More than any machine has, so that one with GPUs fails as well.
        required = {"HONE_REQUIRED_GPUS": "4096", "HONE_GPU_RESOURCE": "amd.com/gpu"}
        several = self._forks.run(self._job(resources={"gpus": 2}), self.out, environ=required)
        failed = self._forks.run(self._job(resources={"gpus": 1}), self.out, environ=required)
        assert (several.code, several.message) == (failed.code, failed.message)
        return failed, "The pod asks for 4096 amd.com/gpu (spec.resources.gpus)"

    def InternalError(self) -> tuple[Any, str]:
        broken = make_broken_model(self._claim / "tiny", self._claim / "broken")
        failed = self.run(model=broken)
        file = self.out / "logs/traceback.txt"
        assert "Traceback (most recent call last)" in file.read_text()
        assert "ZeroDivisionError: this model is broken" in file.read_text()
        again = self._forks.run(self._job(model=broken), self.out, arguments=("--verbose",))
        assert "Traceback (most recent call last)" in again.log
        return failed, str(file)

    def DiskFull(self) -> tuple[Any, str]:
        with self.mounted("size=16m"):
            full = {"phase": "stepping", "at": 2, "root": str(self.out), "leave": 0}
            return self._forks.run(self._job(checkpoint={"saveSteps": 2}), self.out, fill=full), str(self.out)

    def VolumeAccessDenied(self) -> tuple[Any, str]:
        with self.mounted("ro"):
            return self.run(), str(self.out)

    @contextmanager
    def mounted(self, options: str) -> Iterator[None]:
        """Mount a small file system as the output folder."""
        self.out.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "hone-test", str(self.out)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(self.out)], check=True)

    def Interrupted(self) -> tuple[Any, str]:
        stopped = self.run(self._kill(SIGTERM, "stepping", 2), training={"maxSteps": 100})
        return stopped, "Stopped at step"

    def ArtifactMissing(self) -> tuple[Any, str]:
        return self._forks.command(["merge", str(self._folder), str(self.out)]), f"ADAPTER is {self._folder}"

    def ArtifactCorrupt(self) -> tuple[Any, str]:
        assert self.run().code == 0
        card = self.out / "adapter/README.md"
        card.write_text(card.read_text() + " ")
        return self.run(), str(card)

    def AdapterMismatch(self) -> tuple[Any, str]:
        assert self.run().code == 0
        argv = ["merge", str(self.out / "adapter"), str(self._folder / "merged"), "--base", str(self._claim / "wide")]
        return self._forks.command(argv), str(self._claim / "wide")


PROVOKED_ELSEWHERE = {
    "StoreUnauthorized": "by a server of its own: remote/test_remote_downloads.py",
    "StoreUnreachable": "by a server of its own: remote/test_remote_downloads.py",
    "SourceChanged": "by a server of its own: remote/test_remote_downloads.py",
    "DestinationMissing": "by a server of its own: push/test_s3_pushes.py",
    "DestinationOccupied": "by a server of its own: push/test_s3_pushes.py",
    "DestinationRefused": "by a server of its own: push/test_hub_pushes.py",
    "ModelUnsupported": "no trainer ends with it: architectures/test_architecture_serving.py",
    "MergeMismatch": "no input is known that leads to it: test_merged_models.py spoils a merge",
}
REASONS = [found for found in CATALOGUE.values() if found.exit_code and found.name not in PROVOKED_ELSEWHERE]


@pytest.mark.parametrize("reason", REASONS, ids=lambda it: it.name)
def test_each_reason_is_reported_to_the_user(
    forks: Any, there: Any, kill: Any, job: Job, claim: Path, tmp_path: Path, reason: Reason
) -> None:
    if reason.name in ("DiskFull", "VolumeAccessDenied") and os.getuid() != 0:
        pytest.skip("mounting a small file system takes root")
    provoke = getattr(Provoke(forks, there, kill, job, claim, tmp_path), reason.name, None)
    assert provoke, f"nothing provokes {reason.name}"
    ended, words = provoke()
    assert ended.code == reason.exit_code, ended.log
    assert "Traceback" not in ended.log
    if ended.message:
        assert ended.message["reason"] == reason.name
        assert words in ended.message["message"]
    if reason.name == "Interrupted":
        assert "the next start resumes from the newest checkpoint" in ended.log
        return
    said = ended.log.partition("\nerror: ")[2].splitlines()
    assert said[0] == reason.name, ended.log
    assert words in " ".join(said[1:])
    assert len(said) >= 3, "what was found, then what to do"
