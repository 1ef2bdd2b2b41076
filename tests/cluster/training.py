"""FineTuneJobs that take seconds and need no GPU, and tests for their status."""

import json
from typing import Any

from kube import SYSTEM, Cluster, Images, claim, pod
from tiny_model import put_model
from until import wait_until

Object = dict[str, Any]
TRAIN_SECONDS = 300
SERVE_SECONDS = 240
# Two threads that wait for each other lose most of their time on shared cores: a step of a tiny model then takes a
# second instead of a hundredth.
ONE_THREAD = {"env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}
ROWS = "".join(json.dumps({"text": f"{word} is the word of the day."}) + "\n" for word in "red green blue grey".split())


def furnish(cluster: Cluster, images: Images, namespace: str) -> None:
    """Create the inputs of `job`: a tiny model on the claim `models`, and four rows in the ConfigMap `words`."""
    words = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"}, "data": {"train.jsonl": ROWS}}
    cluster.create(claim("models"), words, namespace=namespace)
    put_model(cluster, images, namespace)


def job(name: str, *, steps: int = 4, **spec: Any) -> Object:
    """Return a FineTuneJob on the tiny model, on the CPU."""
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"claim": {"name": "models", "path": "tiny"}},
            "dataset": {"configMap": {"name": "words", "key": "train.jsonl"}},
            "training": {"maxSteps": steps, "perDeviceTrainBatchSize": 2, "loggingSteps": 1},
            "checkpoint": {"saveSteps": 10},
            "output": {"storage": {"size": "1Gi"}},
            "resources": {"gpus": 0, "sharedMemory": "64Mi"},
            "pod": ONE_THREAD,
            **spec,
        },
    }


def because(type_: str, reason: str) -> Any:
    """Return a test for a condition with this reason."""
    return lambda found: reason == reasons(found).get(type_)


def reasons(found: Object) -> dict[str, str]:
    return {each["type"]: each["reason"] for each in found.get("status", {}).get("conditions", [])}


def message(found: Object, type_: str) -> str:
    return next(str(each["message"]) for each in found["status"]["conditions"] if each["type"] == type_)


def has_passed_step(step: int) -> Any:
    return lambda found: (found.get("status", {}).get("progress") or {}).get("step", 0) >= step


def uid(found: Object | None) -> str | None:
    return found["metadata"]["uid"] if found else None


def list_events(hone: Cluster, namespace: str, name: str, reason: str) -> list[Object]:
    """Return the object's events with this reason."""
    found = hone.list("events", namespace)
    return [each for each in found if (each["involvedObject"]["name"], each["reason"]) == (name, reason)]


def wait_for_event(hone: Cluster, namespace: str, name: str, reason: str, *, seconds: float = 120) -> list[Object]:
    """Wait until the object has an event with this reason, and return all of them.

    The operator writes an event after the status that it is about.
    """
    wait_until(lambda: list_events(hone, namespace, name, reason), seconds)
    return list_events(hone, namespace, name, reason)


def metrics(hone: Cluster, namespace: str, name: str) -> list[Object]:
    """Return the lines of the trainer's metrics.jsonl, read from the claim."""
    image = hone.list("pods", SYSTEM, "app.kubernetes.io/component=operator")[0]["spec"]["containers"][0]["image"]
    show = f"print(open('/output/{namespace}/{name}/logs/metrics.jsonl').read())"
    reader = pod(f"read-{name}", image, "python3", "-c", show, claims={name: "/output"})
    return [json.loads(line) for line in hone.run_pod(reader, namespace).splitlines() if line]
