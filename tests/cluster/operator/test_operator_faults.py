"""After deletions, edits, kills and mistakes the operator restores the state, or reports the fault."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from held_training import IS_HELD, STEPS, hold, release
from kube import SYSTEM, Cluster, Images, claim, condition
from processes import processes_of
from training import (
    ONE_THREAD,
    because,
    furnish,
    job,
    message,
    metrics,
    reasons,
    uid,
    wait_for_event,
)
from until import wait_until

Object = dict[str, Any]
TRAIN_SECONDS = 400
SERVE_SECONDS = 300


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with a tiny model on the claim `models` and four rows of text in the ConfigMap `words`."""
    with hone.fresh_namespace("faults") as namespace:
        furnish(hone, images, namespace)
        yield namespace


def service(name: str, job_name: str) -> Object:
    resources = {"gpus": 0, "sharedMemory": "64Mi"}
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"model": {"fineTuneJob": {"name": job_name}}, "resources": resources, "pod": ONE_THREAD},
    }


@pytest.fixture(scope="module")
def served(hone: Cluster, lab: str) -> str:
    """Create the InferenceService `speak`, then the FineTuneJob `words` that it serves, and wait until it succeeded."""
    hone.create(service("speak", "words"), namespace=lab)
    waiting = hone.wait("inferenceservice", "speak", because("ArtifactsResolved", "WaitingForFineTuneJob"), lab)
    assert "FineTuneJob words does not exist" in message(waiting, "ArtifactsResolved")
    hone.create(job("words", steps=20), namespace=lab)
    hone.wait("inferenceservice", "speak", lambda found: "stage is" in message(found, "ArtifactsResolved"), lab)
    assert hone.get("deployment", "speak", lab) is None
    hone.wait("finetunejob", "words", condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    hone.wait("inferenceservice", "speak", condition("Available"), lab, timeout=SERVE_SECONDS)
    return lab


def test_a_service_waits_for_its_job_and_then_serves_it(hone: Cluster, served: str) -> None:
    found = hone.wait("inferenceservice", "speak", because("Progressing", "Complete"), served)
    digest = (hone.get("finetunejob", "words", served) or {})["status"]["artifact"]["digest"]
    models = {model["name"]: model for model in found["status"]["models"]}
    hone.wait(
        "inferenceservice",
        "speak",
        lambda now: {m["loaded"] for m in now["status"]["models"]} == {"1/1"},
        served,
    )
    assert models["words"]["digest"] == digest
    for reason in ("WaitingForFineTuneJob", "EnginesReady"):
        wait_for_event(hone, served, "speak", reason)


@pytest.mark.parametrize("kind", ["service", "deployment"])
def test_a_deleted_child_is_created_again(hone: Cluster, served: str, kind: str) -> None:
    before = uid(hone.get(kind, "speak", served))
    hone.kubectl("delete", kind, "speak", "--wait=true", namespace=served)
    hone.wait(kind, "speak", lambda found: uid(found) != before, served)
    hone.wait("inferenceservice", "speak", condition("Available"), served, timeout=SERVE_SECONDS)


@pytest.mark.parametrize(
    ("kind", "patch", "path"),
    [
        ("service", {"spec": {"ports": [{"name": "http", "port": 99, "targetPort": 1}]}}, ("spec", "ports")),
        ("deployment", {"spec": {"replicas": 0}}, ("spec", "replicas")),
    ],
)
def test_an_edited_child_is_restored(
    hone: Cluster, served: str, kind: str, patch: Object, path: tuple[str, str]
) -> None:
    def value(found: Object | None) -> Any:
        wanted = (found or {})[path[0]][path[1]]
        return [(p["port"], p["targetPort"]) for p in wanted] if isinstance(wanted, list) else wanted

    before = value(hone.get(kind, "speak", served))
    hone.kubectl("patch", kind, "speak", "--type=merge", "--patch", json.dumps(patch), namespace=served)
    hone.wait(kind, "speak", lambda found: value(found) == before, served)
    hone.wait("inferenceservice", "speak", condition("Available"), served, timeout=SERVE_SECONDS)


def test_a_deleted_training_job_resumes_from_its_checkpoint(hone: Cluster, lab: str) -> None:
    hone.create(*hold(job("again", steps=STEPS)), namespace=lab)
    hone.wait("finetunejob", "again", IS_HELD, lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    before = uid(hone.get("job", "again-train", lab))
    hone.kubectl("delete", "job", "again-train", "--wait=false", namespace=lab)
    hone.wait("job", "again-train", lambda found: uid(found) != before, lab)
    hone.wait("finetunejob", "again", condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))

    steps = [line["step"] for line in metrics(hone, lab, "again") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))


def operator_pods(hone: Cluster) -> list[Object]:
    return hone.list("pods", SYSTEM, "app.kubernetes.io/component=operator")


def test_a_job_that_ends_while_the_operator_is_down_is_not_lost(hone: Cluster, lab: str) -> None:
    hone.create(*hold(job("alone", steps=STEPS)), namespace=lab)
    hone.wait("finetunejob", "alone", IS_HELD, lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    [trainer] = hone.list("pods", lab, "hone.dev/finetunejob=alone")
    operators = operator_pods(hone)
    hone.kubectl("scale", "deployment/hone-operator", "--replicas=0", namespace=SYSTEM)
    killed = ["--selector=app.kubernetes.io/component=operator", "--grace-period=0", "--force"]
    hone.kubectl("delete", "pod", *killed, namespace=SYSTEM)
    try:
        # The object of the pod is gone before its process is.
        wait_until(lambda: not any(processes_of(each["metadata"]["uid"], "hone-operator") for each in operators))
        release(hone, lab, trainer["metadata"]["name"])
        hone.wait("job", "alone-train", condition("Complete"), lab, timeout=TRAIN_SECONDS)
        assert (hone.get("finetunejob", "alone", lab) or {})["status"]["stage"] != "Succeeded"
    finally:
        hone.kubectl("scale", "deployment/hone-operator", "--replicas=1", namespace=SYSTEM)
    found = hone.wait(
        "finetunejob", "alone", condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=condition("Failed")
    )
    assert found["status"]["artifact"]["digest"].startswith("sha256:")
    assert len(hone.list("pods", lab, "hone.dev/finetunejob=alone")) == 1


def test_a_result_whose_pod_is_gone_is_read_from_the_claim(hone: Cluster, lab: str) -> None:
    hone.create(*hold(job("lost", steps=STEPS)), namespace=lab)
    hone.wait("finetunejob", "lost", IS_HELD, lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    [trainer] = hone.list("pods", lab, "hone.dev/finetunejob=lost")
    hone.kubectl("scale", "deployment/hone-operator", "--replicas=0", namespace=SYSTEM)
    try:
        hone.wait_pods_gone("app.kubernetes.io/component=operator", SYSTEM)
        release(hone, lab, trainer["metadata"]["name"])
        hone.wait("job", "lost-train", condition("Complete"), lab, timeout=TRAIN_SECONDS)
        hone.kubectl("delete", "pod", "--selector=hone.dev/finetunejob=lost", namespace=lab)
    finally:
        hone.kubectl("scale", "deployment/hone-operator", "--replicas=1", namespace=SYSTEM)
    hone.wait("finetunejob", "lost", condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    steps = [line["step"] for line in metrics(hone, lab, "lost") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    wait_for_event(hone, lab, "lost", "ResultLost")


def test_a_missing_model_fails_at_once(hone: Cluster, lab: str) -> None:
    hone.create(job("nomodel", model={"claim": {"name": "models", "path": "nowhere"}}), namespace=lab)
    failed = hone.wait("finetunejob", "nomodel", condition("Failed"), lab, timeout=TRAIN_SECONDS)
    assert reasons(failed)["Failed"] == "ModelNotFound"
    assert "nowhere" in message(failed, "Failed")
    assert "spec.model" in message(failed, "Failed")
    assert len(hone.list("pods", lab, "hone.dev/finetunejob=nomodel")) == 1
    wait_for_event(hone, lab, "nomodel", "ModelNotFound")


def test_an_image_that_does_not_exist_is_named_and_can_be_waited_out(hone: Cluster, images: Images, lab: str) -> None:
    image = f"{hone.registry}/hone-runtime:none"
    hone.create(job("noimage", pod={"image": image}), namespace=lab)
    waiting = hone.wait("finetunejob", "noimage", because("Running", "ImagePullFailed"), lab)
    assert image in message(waiting, "Running")
    assert "spec.pod.image" in message(waiting, "Running")
    assert reasons(waiting)["Failed"] == "NotFinished"
    wait_for_event(hone, lab, "noimage", "ImagePullFailed")
    hone.kubectl("delete", "finetunejob", "noimage", namespace=lab)


def test_a_claim_that_does_not_exist_is_named(hone: Cluster, lab: str) -> None:
    hone.create(job("noclaim", dataset={"claim": {"name": "nowhere"}}), namespace=lab)
    waiting = hone.wait("finetunejob", "noclaim", because("Running", "VolumeNotBound"), lab)
    assert "nowhere" in message(waiting, "Running")
    hone.create(claim("nowhere"), namespace=lab)
    failed = hone.wait("finetunejob", "noclaim", condition("Failed"), lab, timeout=TRAIN_SECONDS)
    assert reasons(failed)["Failed"].startswith("Dataset")


def test_an_object_of_somebody_else_is_never_taken_over(hone: Cluster, lab: str) -> None:
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "taken-manifest"}, "data": {"mine": "1"}}
    hone.create(theirs, job("taken"), namespace=lab)
    refused = hone.wait("finetunejob", "taken", condition("Accepted", "False"), lab)
    assert reasons(refused)["Accepted"] == "NameConflict"
    assert "taken-manifest" in message(refused, "Accepted")
    hone.wait_gone("job", "taken-train", lab)
    kept = hone.get("configmap", "taken-manifest", lab) or {}
    assert kept["data"] == {"mine": "1"}
    hone.kubectl("delete", "configmap", "taken-manifest", namespace=lab)
    hone.wait("finetunejob", "taken", condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))


def test_deleting_the_objects_leaves_the_claim_alone(hone: Cluster, served: str) -> None:
    kept = uid(hone.get("persistentvolumeclaim", "words", served))
    hone.kubectl("delete", "inferenceservice/speak", "finetunejob/words", namespace=served)
    for kind, name in [
        ("deployment", "speak"),
        ("service", "speak"),
        ("job", "words-train"),
        ("configmap", "words-manifest"),
    ]:
        hone.wait_gone(kind, name, served)
    for label in ("finetunejob=words", "inferenceservice=speak"):
        hone.wait_pods_gone(f"hone.dev/{label}", served)
    left = hone.get("persistentvolumeclaim", "words", served)
    assert kept
    assert uid(left) == kept
