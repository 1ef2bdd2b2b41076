"""An existing claim is used as it is, and its differences from the object are reported."""

from typing import Any

import pytest
from hone_operator.finetunejob.plan import plan_finetunejob
from hone_operator.reconcile.plan import Patch
from observed import NOW, PREPARED, job_object, observed_job, pod

SIZE = {"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"], "storageClassName": "slow"}


def find_claim_condition(claim: dict[str, Any], **spec: Any) -> dict[str, Any] | None:
    observed = observed_job(job_object(status=PREPARED, **spec))
    assert observed.claim
    observed.claim["spec"] = claim
    found = plan_finetunejob(observed, NOW)
    return next((c for c in found.status["conditions"] if c["type"] == "OutputClaim"), None)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"output": {"storage": {"size": "100Gi"}}}, "it has 1Gi, and spec.output.storage.size is 100Gi"),
        ({"output": {"storage": {"storageClassName": "fast"}}}, "its StorageClass is slow"),
        ({"output": {"storage": {"accessModes": ["ReadWriteMany"]}}}, "it lacks ReadWriteMany"),
        ({"resources": {"gpus": 1, "nodes": 2}}, "spec.resources.nodes is 2"),
    ],
)
def test_a_claim_that_differs_from_the_object_is_reported(spec: dict[str, Any], words: str) -> None:
    found = find_claim_condition(SIZE, **spec)
    assert found
    assert (found["status"], found["reason"]) == ("False", "ClaimDiffers")
    assert words in found["message"]
    assert "kubectl patch pvc faq" in found["message"]


@pytest.mark.parametrize(
    "spec", [{}, {"output": {"storage": {"size": "512Mi"}}}, {"output": {"storage": {"size": "1024Mi"}}}]
)
def test_a_claim_that_satisfies_the_object_is_not_reported(spec: dict[str, Any]) -> None:
    assert find_claim_condition(SIZE, **spec) is None


def test_pods_that_a_kubelet_rejected_raise_the_backoff_limit() -> None:
    rejected = [pod(f"p{i}") for i in range(3)]
    for one in rejected:
        one["status"] |= {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed"}
    observed = observed_job(job_object(resources={"gpus": 1}, backoffLimit=2, status=PREPARED), *rejected)
    patches = [one for one in plan_finetunejob(observed, NOW).actions if isinstance(one, Patch)]
    assert [one.patch["spec"]["backoffLimit"] for one in patches] == [5]
