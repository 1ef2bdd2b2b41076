"""The life of a FineTuneJob: prepared without GPUs, suspended, changed, past its deadline, on several pods, removed."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from held_training import HELD_STEP, IS_HELD, STEPS, hold
from hone_operator.snapshots.nodes import CLUSTER_SECONDS
from kube import Cluster, Images, condition
from training import because, furnish, job, message, metrics, reasons, uid

Object = dict[str, Any]
TRAIN_SECONDS = 400
GPU, SMALL_GPU = "amd.com/gpu", "amd.com/cpx_nps4"
ONE_GPU = {"gpus": 1, "sharedMemory": "64Mi"}


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images, nodes: float) -> Iterator[str]:
    with hone.fresh_namespace("life") as namespace:
        furnish(hone, images, namespace)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}, "stringData": {"token": "hf_none"}}
        hone.create(secret, namespace=namespace)
        yield namespace


@pytest.fixture(scope="module")
def nodes(hone: Cluster) -> Iterator[float]:
    """Label the nodes as AMD's node labeller would, and add a fake node with a small GPU.

    Yield the time by the monotonic clock at which the operator knows them.
    """
    names = [node["metadata"]["name"] for node in hone.list("nodes") if GPU in node["status"]["allocatable"]]
    label = "amd.com/gpu.device-id"
    hone.kubectl("label", "--overwrite", "node", *names, f"{label}=74a1")
    small = {"name": "small-gpu", "labels": {"amd.com/gpu.vram": "1G"}}
    hone.create({"apiVersion": "v1", "kind": "Node", "metadata": small})
    capacity = json.dumps({"status": {"capacity": {SMALL_GPU: "1"}, "allocatable": {SMALL_GPU: "1"}}})
    hone.kubectl("patch", "node", "small-gpu", "--subresource=status", "--type=merge", "--patch", capacity)
    yield time.monotonic() + CLUSTER_SECONDS + 20
    hone.kubectl("delete", "node", "small-gpu")
    hone.kubectl("label", "node", *names, f"{label}-")


@pytest.fixture(scope="module")
def known_nodes(nodes: float) -> None:
    """Wait until the operator knows the nodes. The tests that need it come last: the others run meanwhile."""
    time.sleep(max(0, nodes - time.monotonic()))


def patch(hone: Cluster, name: str, namespace: str, **spec: Any) -> None:
    words = json.dumps({"spec": spec})
    hone.kubectl("patch", "finetunejob", name, "--type=merge", "--patch", words, namespace=namespace)


def wait_until_succeeded(hone: Cluster, name: str, namespace: str) -> Object:
    return hone.wait(
        "finetunejob", name, condition("Succeeded"), namespace, timeout=TRAIN_SECONDS, unless=condition("Failed")
    )


def container_of(made: Object | None) -> Object:
    assert made
    found: Object = made["spec"]["template"]["spec"]["containers"][0]
    return found


def names_of(variables: list[Object]) -> set[str]:
    return {variable["name"] for variable in variables}


def test_a_suspended_job_holds_no_gpu_and_resumes_at_the_same_step(hone: Cluster, lab: str) -> None:
    hone.create(*hold(job("pause", steps=STEPS)), namespace=lab)
    hone.wait("finetunejob", "pause", IS_HELD, lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    patch(hone, "pause", lab, suspend=True)
    suspended = hone.wait("finetunejob", "pause", condition("Suspended"), lab)
    assert suspended["status"]["stage"] == "Suspended"
    pods = hone.list("pods", lab, "hone.dev/finetunejob=pause")
    assert {pod["status"]["phase"] for pod in pods} <= {"Failed"}  # an ended pod may still be terminating
    assert hone.get("job", "pause-train", lab) is None
    stopped_at = suspended["status"]["progress"]["step"]
    patch(hone, "pause", lab, suspend=False, resources={"memory": "4Gi"})
    done = wait_until_succeeded(hone, "pause", lab)
    assert container_of(hone.get("job", "pause-train", lab))["resources"]["limits"]["memory"] == "4Gi"
    steps = [line["step"] for line in metrics(hone, lab, "pause") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert HELD_STEP <= stopped_at < STEPS
    assert done["status"]["restarts"] == 1
    assert [attempt.get("exitCode") for attempt in done["status"]["attempts"]][-1] == 0


def test_a_change_of_a_running_job_continues_from_a_checkpoint(hone: Cluster, lab: str) -> None:
    hone.create(*hold(job("change", steps=STEPS)), namespace=lab)
    hone.wait("finetunejob", "change", IS_HELD, lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    before = uid(hone.get("job", "change-train", lab))
    patch(hone, "change", lab, pod={"labels": {"team": "nlp"}})
    hone.wait("job", "change-train", lambda found: uid(found) != before, lab)
    wait_until_succeeded(hone, "change", lab)
    assert [pod["metadata"]["labels"]["team"] for pod in hone.list("pods", lab, "hone.dev/finetunejob=change")] == [
        "nlp"
    ]
    steps = [line["step"] for line in metrics(hone, lab, "change") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))


def test_fields_that_determine_the_result_cannot_change(hone: Cluster, lab: str) -> None:
    hone.create(job("fixed", suspend=True), namespace=lab)
    with pytest.raises(AssertionError, match="training can't change after creation"):
        patch(hone, "fixed", lab, training={"maxSteps": 5})
    with pytest.raises(AssertionError, match=r"resources\.gpus and resources\.nodes can't change after creation"):
        patch(hone, "fixed", lab, resources={"gpus": 2})
    found = hone.wait("finetunejob", "fixed", condition("Suspended"), lab)
    assert hone.get("job", "fixed-train", lab) is None
    assert reasons(found)["Running"] == "Suspended"


def test_out_of_time_then_removed_and_the_claim_is_kept(hone: Cluster, lab: str) -> None:
    hone.create(job("late", steps=100000, activeDeadlineSeconds=12, ttlSecondsAfterFinished=2), namespace=lab)
    failed = hone.wait("finetunejob", "late", condition("Failed"), lab)
    assert reasons(failed)["Failed"] == "DeadlineExceeded"
    assert "12 s" in message(failed, "Failed")
    hone.wait_gone("job", "late-train", lab)
    hone.wait_pods_gone("hone.dev/finetunejob=late", lab)
    assert hone.get("finetunejob", "late", lab)
    assert hone.get("persistentvolumeclaim", "late", lab)


def test_two_pods_train_together_and_survive_the_loss_of_one(hone: Cluster, lab: str) -> None:
    storage = {"storage": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}
    made = job("gang", steps=STEPS, output=storage, resources={**ONE_GPU, "nodes": 2})
    hone.create(*hold(made, pod=1), namespace=lab)
    hone.wait("finetunejob", "gang", IS_HELD, lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    [second] = [
        pod["metadata"]["name"]
        for pod in hone.list("pods", lab, "batch.kubernetes.io/job-completion-index=1,hone.dev/finetunejob=gang")
    ]
    hone.kubectl("delete", "pod", second, "--grace-period=0", "--force", namespace=lab)
    done = wait_until_succeeded(hone, "gang", lab)
    steps = [line["step"] for line in metrics(hone, lab, "gang") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert done["status"]["restarts"] >= 1
    assert done["status"]["gpuSeconds"] == sum(attempt["seconds"] for attempt in done["status"]["attempts"])


def test_a_job_with_gpus_is_prepared_without_them_and_only_there_with_the_token(
    hone: Cluster, lab: str, known_nodes: None
) -> None:
    hone.create(job("two-stages", resources=ONE_GPU, tokenSecret={"name": "hub"}), namespace=lab)
    hone.wait("finetunejob", "two-stages", because("Prepared", "Preparing"), lab, timeout=TRAIN_SECONDS)
    assert hone.get("job", "two-stages-train", lab) is None
    found = wait_until_succeeded(hone, "two-stages", lab)
    preparing = container_of(hone.get("job", "two-stages-prepare", lab))
    training = container_of(hone.get("job", "two-stages-train", lab))
    assert GPU not in preparing["resources"].get("limits", {})
    assert training["resources"]["limits"][GPU] == "1"
    assert "HF_TOKEN" in names_of(preparing["env"])
    assert "HF_TOKEN" not in names_of(training["env"])
    status = found["status"]
    assert condition("Prepared")(found)
    assert "4 to train on" in message(found, "Prepared")
    assert status["estimate"]["total"] > 0
    assert status["restarts"] == 0
    [attempt] = status["attempts"]
    assert (attempt["exitCode"], attempt["reason"]) == (0, "Succeeded")
    assert f"MI300X of node {attempt['node']}" in preparing["args"]
    assert status["gpuSeconds"] == attempt["seconds"] > 0


def test_a_model_too_large_for_all_gpus_is_refused_before_one_is_requested(
    hone: Cluster, lab: str, known_nodes: None
) -> None:
    hone.create(job("large", resources={**ONE_GPU, "gpuResource": SMALL_GPU}), namespace=lab)
    failed = hone.wait(
        "finetunejob", "large", condition("Failed"), lab, timeout=TRAIN_SECONDS, unless=condition("Prepared")
    )
    assert reasons(failed)["Failed"] == "ModelTooLarge"
    assert "small-gpu" in message(failed, "Failed")
    assert "GiB" in message(failed, "Failed")
    assert hone.get("job", "large-train", lab) is None
    assert failed["status"].get("gpuSeconds", 0) == 0
