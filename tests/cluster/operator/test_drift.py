"""Edited children of a FineTuneJob are restored, and names that others use are reported."""

import json
from collections.abc import Iterator

import pytest
from kube import Cluster
from training import because, job, message, reasons, uid

# The pod never starts, and the object waits.
NOWHERE = {"image": "registry.invalid/nothing:1"}


@pytest.fixture(scope="module")
def waiting(hone: Cluster) -> Iterator[str]:
    """Yield a namespace with a FineTuneJob `waits` whose Job exists."""
    with hone.fresh_namespace("drift") as namespace:
        hone.create(job("waits", pod=NOWHERE), namespace=namespace)
        hone.wait("job", "waits-train", bool, namespace)
        yield namespace


def test_an_edited_manifest_is_restored(hone: Cluster, waiting: str) -> None:
    before = hone.wait("configmap", "waits-manifest", bool, waiting)["data"]
    edited = json.dumps({"data": dict.fromkeys(before, "mine")})
    hone.kubectl("patch", "configmap", "waits-manifest", "--type=merge", "--patch", edited, namespace=waiting)
    hone.wait("configmap", "waits-manifest", lambda found: found["data"] == before, waiting)


def test_mutable_fields_change_in_the_existing_job(hone: Cluster, waiting: str) -> None:
    before = uid(hone.get("job", "waits-train", waiting))
    patch = json.dumps({"spec": {"activeDeadlineSeconds": 7777}})
    hone.kubectl("patch", "finetunejob", "waits", "--type=merge", "--patch", patch, namespace=waiting)
    found = hone.wait("job", "waits-train", lambda now: now["spec"].get("activeDeadlineSeconds") == 7777, waiting)
    assert uid(found) == before


def test_a_job_of_somebody_else_keeps_its_name(hone: Cluster, waiting: str) -> None:
    container = {"name": "main", "image": "registry.invalid/nothing:1"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    theirs = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "held-train"}}
    hone.create({**theirs, "spec": {"suspend": True, "template": template}}, namespace=waiting)
    before = uid(hone.get("job", "held-train", waiting))
    hone.create(job("held", pod=NOWHERE), namespace=waiting)
    refused = hone.wait("finetunejob", "held", because("Accepted", "NameConflict"), waiting)
    assert reasons(refused)["Running"] == "NameConflict"
    assert "held-train" in message(refused, "Accepted")
    assert uid(hone.get("job", "held-train", waiting)) == before
