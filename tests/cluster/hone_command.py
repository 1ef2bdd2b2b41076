"""The `hone` command as a user of the cluster, and the small objects that its tests create."""

import subprocess
import sys
from typing import Any

from kube import Cluster
from training import ONE_THREAD

Object = dict[str, Any]
TRAIN_SECONDS = 600
SERVE_SECONDS = 480


def job(name: str, **spec: Any) -> Object:
    found = {
        "model": {"claim": {"name": "models", "path": "tiny"}},
        "dataset": {"configMap": {"name": "rows", "key": "train.jsonl"}},
        "training": {"maxSteps": 8, "perDeviceTrainBatchSize": 2, "loggingSteps": 1},
        "output": {"storage": {"size": "1Gi"}},
        "resources": {"gpus": 0, "sharedMemory": "64Mi"},
        "pod": ONE_THREAD,
    }
    metadata = {"name": name}
    return {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": found | spec}


def service(name: str, job_name: str) -> Object:
    resources = {"gpus": 0, "sharedMemory": "64Mi"}
    spec = {"model": {"fineTuneJob": {"name": job_name}}, "resources": resources, "pod": ONE_THREAD}
    metadata = {"name": name}
    return {"apiVersion": "hone.dev/v1alpha1", "kind": "InferenceService", "metadata": metadata, "spec": spec}


def start(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    """Start the hone command as a user of this cluster."""
    command = [sys.executable, "-m", "hone_cli", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=cluster.env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def run(cluster: Cluster, *arguments: str, stdin: str = "", timeout: float = 120) -> tuple[int, str, str]:
    """Run the hone command. Return exit code, stdout and stderr."""
    with start(cluster, *arguments) as started:
        try:
            out, err = started.communicate(stdin, timeout=timeout)
        finally:
            started.kill()
    return started.returncode, out, err
