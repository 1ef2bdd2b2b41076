"""A cluster with a finished job and its artifact, and `hone` as a process."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fake_cluster import CORE, FakeCluster, serve
from hone_api.artifacts.proof import prove
from sealed_artifacts import seal


@contextmanager
def serve_artifact(tmp_path: Path, monkeypatch: Any) -> Iterator[FakeCluster]:
    """Yield a cluster with the finished job faq, whose artifact has a file of several megabytes."""
    claim = tmp_path / "claim"
    for name, content in {
        "adapter/adapter_config.json": b"{}",
        "adapter/adapter_model.safetensors": random.Random(7).randbytes(6 * 2**20),
        "report/report.html": b"<h1>faq</h1>",
    }.items():
        (claim / name).parent.mkdir(parents=True, exist_ok=True)
        (claim / name).write_bytes(content)
    manifest = seal(claim, "adapter", job="faq")
    found = FakeCluster(claim=claim)
    metadata = {"name": "faq", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-03-01T10:00:00Z"}
    artifact = {"kind": "adapter", "claim": "faq", "path": "ns/faq", "digest": manifest.digest}
    job = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": {}}
    found.add("finetunejobs", job | {"status": {"stage": "Succeeded", "artifact": artifact}})
    found.add("persistentvolumeclaims", {"metadata": {"name": "faq"}, "spec": {"accessModes": ["ReadWriteMany"]}}, CORE)
    trainer = {"spec": {"containers": [{"name": "trainer", "image": "runtime:1"}]}}
    found.objects["/apis/batch/v1/namespaces/ns/jobs/faq-train"] = {"spec": {"template": trainer}}
    with serve(found, tmp_path, monkeypatch):
        yield found


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command. Signals have their default effect, also where the tests run in the background."""

    def take_signals() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    environment = os.environ | {"KUBECONFIG": str(folder / "kubeconfig")}
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "hone_cli", *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=pipe, stderr=pipe, text=True, preexec_fn=take_signals
    )


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    with start(folder, *arguments) as started:
        out, err = started.communicate(timeout=300)
    return started.returncode, out, err


def assert_pulled(root: Path, fake: FakeCluster) -> None:
    proof = prove(root)
    assert proof is not None
    digest = next(iter(fake.lists.values()))[0]["status"]["artifact"]["digest"]
    assert proof.manifest.digest == digest
    assert sorted(path.name for path in (root / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
