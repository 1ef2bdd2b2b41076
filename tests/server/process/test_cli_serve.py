"""`hone run`, `hone serve` and `hone chat` after each other, with a real trainer and engine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml
from run_isolation import find_free_port

ROWS = [{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello world"}]}] * 4
CONFIG_MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "rows"},
    "data": {"train.jsonl": "\n".join(json.dumps(row) for row in ROWS)},
}
JOB = {
    "apiVersion": "hone.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "greeting"},
    "spec": {
        "model": {"claim": {"name": "models", "path": "tiny-llama"}},
        "dataset": {"configMap": {"name": "rows", "key": "train.jsonl"}},
        "training": {"maxSteps": 2, "perDeviceTrainBatchSize": 2},
        "resources": {"gpus": 0},
    },
}
SERVICE = JOB | {"kind": "InferenceService", "spec": {"model": {"fineTuneJob": {"name": "greeting"}}}}


def hone(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hone_cli", *arguments]


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_manifest_is_trained_served_and_talked_to(
    base_folder: Path, tmp_path: Path, until: Callable[..., None]
) -> None:
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all([CONFIG_MAP, JOB, SERVICE]))
    claim = f"models={base_folder.parent}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    here: dict[str, Any] = {"cwd": tmp_path, "env": environment, "text": True}

    trained = subprocess.run(hone("run", "all.yaml", "--claim", claim), capture_output=True, **here)
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr.endswith("hone serve greeting\n")

    port = find_free_port()
    serve = hone("serve", "all.yaml", "--claim", claim, "--port", str(port))
    with subprocess.Popen(serve, stderr=subprocess.PIPE, **here) as engine:
        try:
            until(lambda: engine.poll() is not None or healthy(f"http://127.0.0.1:{port}"), 240)
            asked = hone("chat", "--url", f"http://127.0.0.1:{port}/v1", "--message", "hello")
            answer = subprocess.run(asked, capture_output=True, **here)
        finally:
            engine.send_signal(signal.SIGINT)
            said = engine.communicate(timeout=60)[1]
    assert answer.returncode == 0, answer.stderr + said
    assert answer.stdout.strip()
    assert "Model: greeting (also there: tiny-llama)" in answer.stderr
    assert engine.returncode == 0, said
