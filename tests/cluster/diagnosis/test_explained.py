"""Every wait and failure that can be provoked here is explained by the cause's own message, with a remedy.

All waiting objects are created at once, since the waiting takes most of the time.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakenodes import TOLERATION, fake_nodes
from held_training import IS_HELD, hold, release
from kube import SYSTEM, Cluster, Images, claim, condition, pod
from processes import processes_of, stopped
from training import (
    because,
    furnish,
    has_passed_step,
    job,
    list_events,
    message,
    reasons,
    wait_for_event,
)
from until import wait_until

Object = dict[str, Any]
SPX, DPX, QPX, TPX = (f"amd.com/{mode}_nps1" for mode in ("spx", "dpx", "qpx", "tpx"))
OUT = {"claim": {"name": "out"}}
TOLERANT = {"tolerations": [TOLERATION]}
NODES: dict[str, Object] = {
    "fake-spx": {"capacity": {SPX: "8"}, "labels": {"zone": "a"}},
    "fake-sick": {"capacity": {QPX: "8"}, "allocatable": {QPX: "0"}},
    "fake-cordoned": {"capacity": {DPX: "8"}, "unschedulable": True},
    "fake-lost": {"capacity": {TPX: "8"}, "ready": False},
}
DYING: dict[str, Object] = {"fake-gone": {"capacity": {}, "labels": {"only": "gone"}, "dies": True}}


def service(name: str, *, count: int = 1, gpu: str = SPX, **options: Any) -> Object:
    """Return an InferenceService whose one engine requests GPUs."""
    spec = {
        "model": {"name": "example/model"},
        "resources": {"gpus": count, "gpuResource": gpu},
        "pod": {"image": "none", **options},
    }
    return {"apiVersion": "hone.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name}, "spec": spec}


def waiting(
    hone: Cluster,
    namespace: str,
    name: str,
    reason: str,
    *texts: str,
    kind: str = "FineTuneJob",
    timeout: float = 180,
    earlier: int = 0,
) -> str:
    """Wait until the object's condition has the reason, and all of these texts in its message. Return the message.

    There is one event about it, after the `earlier` ones with the same reason.
    """
    type_ = "Running" if kind == "FineTuneJob" else "Progressing"

    def holds(found: Object) -> bool:
        return reasons(found).get(type_) == reason and all(text in message(found, type_) for text in texts)

    found = hone.wait(kind, name, holds, namespace, timeout=timeout, unless=condition("Failed"))
    wait_until(lambda: len(list_events(hone, namespace, name, reason)) > earlier)
    assert len(list_events(hone, namespace, name, reason)) == earlier + 1
    return message(found, type_)


UNSCHEDULABLE: list[tuple[Object, tuple[str, ...]]] = [
    (
        service("other", gpu="amd.com/cpx_nps4"),
        ("no node has any, but there is", "Set spec.resources.gpuResource: "),
    ),
    (
        service("sick", gpu=QPX, **TOLERANT),
        (f"no node has any that is healthy: fake-sick has 8 {QPX}", "device plugin"),
    ),
    (
        service("taint"),
        (
            "untolerated taint",
            "fake-spx has taint hone.dev/fake=true:NoSchedule",
            '{key: hone.dev/fake, operator: Equal, value: "true", effect: NoSchedule} to spec.pod.tolerations',
        ),
    ),
    (service("cordon", gpu=DPX, **TOLERANT), ("fake-cordoned is cordoned", "uncordon fake-cordoned")),
    (
        service("lost", gpu=TPX, **TOLERANT),
        ("fake-lost is not ready since", "Kubelet stopped posting node status", "kubectl describe node fake-lost"),
    ),
    (
        service("select", nodeSelector={"zone": "b"}, **TOLERANT),
        ("didn't match", "fake-spx lacks label zone=b (it has a)", "spec.pod.nodeSelector"),
    ),
    (
        service("large", count=16, **TOLERANT),
        (f"asks for 16 {SPX}, and no node has more than 8", "Lower spec.resources.gpus to 8 or less"),
    ),
    (
        service("busy", count=4, **TOLERANT),
        (f"Insufficient {SPX}", "too little free now: fake-spx", "Nothing to do"),
    ),
    (
        job("memory", output=OUT, resources={"gpus": 0, "memory": "9Ti"}),
        ("asks for 9216 GiB memory", "Lower spec.resources.memory to"),
    ),
]
NOBODY = job("nobody", output=OUT, pod={"schedulerName": "nobody"})
NOT_FOUND: list[tuple[Object, str, tuple[str, ...]]] = [
    (
        job("secret", output=OUT, tokenSecret={"name": "nobody"}),
        "PodNotStarted",
        ('secret "nobody" not found', "Create Secret nobody"),
    ),
    (
        job("key", output=OUT, tokenSecret={"name": "keys", "key": "other"}),
        "PodNotStarted",
        ("couldn't find key other in Secret", "Add the key"),
    ),
    (
        job("config", output=OUT, dataset={"configMap": {"name": "nowhere", "key": "train.jsonl"}}),
        "PodNotStarted",
        ('configmap "nowhere" not found', "Create ConfigMap nowhere"),
    ),
    (
        job("class", output={"storage": {"size": "1Gi", "storageClassName": "nowhere"}}),
        "VolumeNotBound",
        (
            "PersistentVolumeClaim class (1Gi, ReadWriteOnce, StorageClass nowhere) is Pending",
            'storageclass.storage.k8s.io "nowhere" not found',
        ),
    ),
]
STRICT: list[tuple[Object, tuple[str, ...]]] = [
    (job("quota"), ("refuses pods: exceeded quota: few, requested: pods=1, used: pods=0, limited: pods=0",)),
    (
        job("limit", resources={"gpus": 0, "memory": "2Gi"}),
        ("maximum memory usage per Container is 1Gi, but limit is 2Gi",),
    ),
]


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace in which all objects of the lists above wait, with some fake nodes."""
    with hone.fresh_namespace("explained") as namespace, fake_nodes(hone, **NODES):
        furnish(hone, images, namespace)
        with fake_nodes(hone, **DYING):
            make_waiting(hone, namespace)
            yield namespace
            hone.kubectl("delete", "finetunejobs,inferenceservices", "--all", namespace=namespace)
            hone.kubectl("delete", "pod", "--all", "--force", "--grace-period=0", namespace=namespace)


def make_waiting(hone: Cluster, namespace: str) -> None:
    """Create what the objects of the lists above need and lack, and these objects."""
    secret = {"token": base64.b64encode(b"x").decode()}
    hone.create(
        claim("out"),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "data": secret},
        namespace=namespace,
    )
    holder = pod("holder", "none", "none")
    holder["spec"] |= TOLERANT
    holder["spec"]["containers"][0]["resources"] = {"limits": {SPX: "5"}}
    hone.create(holder, namespace=namespace)
    hone.wait("pod", "holder", condition("PodScheduled"), namespace)
    small = job("small", output=OUT, backoffLimit=0, resources={"gpus": 0, "memory": "48Mi", "sharedMemory": "16Mi"})
    gone = job("gone", output=OUT, pod=TOLERANT | {"nodeSelector": {"only": "gone"}})
    hone.create(gone, *(each[0] for each in (*UNSCHEDULABLE, *NOT_FOUND)), NOBODY, small, namespace=namespace)
    pretend_to_run(hone, namespace, "gone")


@pytest.fixture(scope="module")
def strict(hone: Cluster, lab: str) -> Iterator[str]:
    """Yield a namespace in which no pod can be created."""
    with hone.fresh_namespace("strict") as namespace:
        quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
        limits = {"metadata": {"name": "small"}, "spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]}}
        hone.create(
            {"apiVersion": "v1", "kind": "ResourceQuota", **quota},
            {"apiVersion": "v1", "kind": "LimitRange", **limits},
            *(each for each, _ in STRICT),
            namespace=namespace,
        )
        yield namespace


def pretend_to_run(hone: Cluster, namespace: str, name: str) -> None:
    """Report the trainer's pod as running, as a kubelet of its node would."""
    hone.wait("job", f"{name}-train", lambda found: found["status"].get("active"), namespace)
    trainer = trainer_of(hone, namespace, name)["metadata"]["name"]
    hone.wait("pod", trainer, condition("PodScheduled"), namespace)
    running = {"name": "trainer", "image": "x", "imageID": "", "ready": True, "restartCount": 0}
    running |= {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    ready = [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]
    status = {"phase": "Running", "podIP": "192.0.2.1", "conditions": ready, "containerStatuses": [running]}
    patch = json.dumps({"status": status})
    hone.kubectl(
        "patch", "pod", trainer, "--subresource=status", "--type=merge", f"--patch={patch}", namespace=namespace
    )


def name_of(case: tuple[Any, ...]) -> str:
    return str(case[0]["metadata"]["name"])


@pytest.mark.usefixtures("strict")  # its waits begin together with the others
@pytest.mark.parametrize("case", UNSCHEDULABLE, ids=name_of)
def test_why_no_node_takes_a_pod(hone: Cluster, lab: str, case: tuple[Object, tuple[str, ...]]) -> None:
    made, texts = case
    waiting(hone, lab, name_of(case), "Unschedulable", *texts, kind=made["kind"])


def trainer_of(hone: Cluster, namespace: str, name: str) -> Object:
    """Return the newest pod of the FineTuneJob."""
    found = hone.list("pods", namespace, f"hone.dev/finetunejob={name}")
    return max(found, key=lambda each: each["metadata"]["creationTimestamp"])


def test_an_eviction_is_explained_and_the_job_resumes(hone: Cluster, lab: str) -> None:
    """Meanwhile, the long waits of the following tests come to their end."""
    hone.create(*hold(job("evicted", steps=100000), ends_at_signal=False), namespace=lab)
    hone.wait("finetunejob", "evicted", IS_HELD, lab, timeout=240, unless=condition("Failed"))
    name = trainer_of(hone, lab, "evicted")["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    hone.kubectl(
        "create", "--raw", f"/api/v1/namespaces/{lab}/pods/{name}/eviction", "-f", "-", stdin=json.dumps(eviction)
    )
    wait_for_event(hone, lab, "evicted", "TrainerStopping")
    release(hone, lab, name)
    # The reason itself can be over within a second, when the next pod runs.
    [interrupted] = wait_for_event(hone, lab, "evicted", "Interrupted")
    assert "EvictionByEvictionAPI on node" in interrupted["message"]
    hone.wait("finetunejob", "evicted", because("Running", "TrainerRunning"), lab)
    hone.kubectl("delete", "finetunejob", "evicted", namespace=lab)


def test_a_scheduler_that_does_not_exist_is_named(hone: Cluster, lab: str) -> None:
    waiting(hone, lab, "nobody", "Unschedulable", "scheduler nobody has not looked")


@pytest.mark.parametrize("case", NOT_FOUND, ids=name_of)
def test_missing_dependencies_of_a_pod_are_explained(
    hone: Cluster, lab: str, case: tuple[Object, str, tuple[str, ...]]
) -> None:
    _, reason, texts = case
    waiting(hone, lab, name_of(case), reason, *texts)


def test_a_memory_limit_that_is_too_low_is_named(hone: Cluster, lab: str) -> None:
    failed = hone.wait("finetunejob", "small", condition("Failed"), lab)
    assert reasons(failed)["Failed"] == "HostOutOfMemory"
    assert "memory limit of 48Mi. Raise spec.resources.memory" in message(failed, "Failed")


@pytest.mark.parametrize("case", STRICT, ids=name_of)
def test_quota_and_limit_range_are_quoted(hone: Cluster, strict: str, case: tuple[Object, tuple[str, ...]]) -> None:
    waiting(hone, strict, name_of(case), "QuotaExceeded", *case[1])


def test_a_lost_node_is_explained(hone: Cluster, lab: str) -> None:
    """Kubernetes notices the missing heartbeat of the node after about 40 seconds."""
    texts = ("runs on node fake-gone, which is not ready since", "Kubelet stopped posting node status")
    waiting(hone, lab, "gone", "NodeLost", *texts, timeout=240)


@pytest.fixture(scope="module")
def impatient(hone: Cluster, images: Images, lab: str) -> Iterator[str]:
    """Yield the namespace with an operator that reports after seconds instead of minutes, in place of the chart's."""
    if not Path("/sys/class/net/cni0").exists():
        pytest.skip("NOT RUN: the pods run on another machine")
    start = (
        "from datetime import timedelta as t\n"
        "from hone_operator import main\n"
        "from hone_operator.diagnosis import liveness\n"
        "from hone_operator.kube import pod_poller as polling\n"
        "polling.LATER_EVERY_SECONDS = polling.EVERY_SECONDS\n"
        "liveness.DEFAULT_LIMITS = liveness.LivenessLimits("
        "max_silence=t(seconds=8), min_stall=t(seconds=10), max_first_step=t(seconds=60))\n"
        "liveness.RECHECK_INTERVAL = t(seconds=1)\n"
        f"main.main(['--namespace', {lab!r}])"
    )
    hone.kubectl("scale", "deployment/hone-operator", "--replicas=0", namespace=SYSTEM)
    env = {**os.environ, **hone.env, "HONE_RUNTIME_IMAGE": images.runtime, "HONE_REQUIRE_GPUS": "false"}
    process = subprocess.Popen([sys.executable, "-c", start], env=env)
    try:
        yield lab
    finally:
        process.terminate()
        process.wait(timeout=60)
        hone.kubectl("scale", "deployment/hone-operator", "--replicas=1", namespace=SYSTEM)
        rollout = ("rollout", "status", "deployment/hone-operator", "--timeout=180s")
        hone.kubectl(*rollout, namespace=SYSTEM, timeout=210)


def trains(found: Object) -> bool:
    """Return whether the trainer has made steps, and nothing is wrong with it."""
    return bool(has_passed_step(20)(found) and because("Running", "TrainerRunning")(found))


def test_a_silent_trainer_is_reported(hone: Cluster, impatient: str) -> None:
    hone.create(job("silent", steps=100000), namespace=impatient)
    hone.wait("finetunejob", "silent", trains, impatient, timeout=240, unless=condition("Failed"))
    # On a slow machine it was silent for that long before, too: while it imported torch.
    earlier = len(list_events(hone, impatient, "silent", "TrainerSilent"))
    with stopped(processes_of(trainer_of(hone, impatient, "silent")["metadata"]["uid"], "hone")):
        waiting(hone, impatient, "silent", "TrainerSilent", "port 8080 has not answered since", earlier=earlier)
    hone.wait("finetunejob", "silent", because("Running", "TrainerRunning"), impatient)
    hone.kubectl("delete", "finetunejob", "silent", namespace=impatient)


def test_a_trainer_that_waits_forever_for_another_is_reported(hone: Cluster, impatient: str) -> None:
    """The first of two pods reports for both: when the second one stops, the first makes no step."""
    storage = {"storage": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}
    resources = {"gpus": 1, "nodes": 2, "sharedMemory": "64Mi"}
    hone.create(job("stalled", steps=100000, output=storage, resources=resources), namespace=impatient)
    hone.wait("finetunejob", "stalled", trains, impatient, timeout=300, unless=condition("Failed"))
    earlier = len(list_events(hone, impatient, "stalled", "Stalled"))
    selector = "batch.kubernetes.io/job-completion-index=1,hone.dev/finetunejob=stalled"
    [second] = [
        each["metadata"]["uid"]
        for each in hone.list("pods", impatient, selector)
        if each["status"]["phase"] == "Running"
    ]
    # The launcher of the stopped worker still reports that its node is there.
    with stopped(processes_of(second, "hone_trainer.worker")):
        texts = ("has made no step since", "of 100000 were done; a step takes about")
        waiting(hone, impatient, "stalled", "Stalled", *texts, earlier=earlier)
    hone.wait("finetunejob", "stalled", because("Running", "TrainerRunning"), impatient)
    hone.kubectl("delete", "finetunejob", "stalled", namespace=impatient)
