"""What a ResourceQuota or LimitRange refuses: the remedy names the field that decides it, and the right direction."""

import re

import pytest
from hone_api.reasons import CHILD_REFUSED
from hone_operator.diagnosis.quotas import advise_on_quota
from hone_operator.kube.client import ApiError
from hone_operator.objects.resources import JOBS
from hone_operator.reconcile.plan import Create
from hone_operator.reconcile.sync_failures import explain_write_failure

FIELDS = {
    "cpu": ("spec.resources.cpu", "spec.resources.limits.cpu"),
    "memory": ("spec.resources.memory", "spec.resources.memory"),
    "ephemeral-storage": ("spec.resources.requests.ephemeral-storage", "spec.resources.limits.ephemeral-storage"),
    "amd.com/gpu": ("spec.resources.gpus", "spec.resources.gpus"),
    "amd.com/nic": ("spec.resources.limits.amd.com/nic", "spec.resources.limits.amd.com/nic"),
}
DIRECTIONS = {"maximum": ("Lower", "at most"), "minimum": ("Raise", "at least")}


def advice(words: str, kind: str = "pods") -> str:
    found = advise_on_quota(f'{kind} "x" is forbidden: {words}')
    assert found
    return found


@pytest.mark.parametrize("bound", DIRECTIONS)
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("per", ["Container", "Pod"])
def test_a_limit_range_names_the_field_and_the_direction(bound: str, name: str, kind: int, per: str) -> None:
    verb, most = DIRECTIONS[bound]
    field, word = FIELDS[name][kind], ("request", "limit")[kind]
    assert advice(f"{bound} {name} usage per {per} is 2, but {word} is 3").startswith(f"{verb} {field}, or ask")
    lacks = advice(f"{bound} {name} usage per {per} is 2.  No {word} is specified")
    assert lacks.startswith(f"Set {field} to {most} 2, or ask")


def test_each_limit_of_a_message_is_named() -> None:
    said = advice(
        "[maximum cpu usage per Container is 1, but request is 2, minimum memory usage per Pod is 1Gi.  No request is "
        "specified, ephemeral-storage max limit to request ratio per Container is 2, but provided ratio is 10.000000]"
    )
    assert said.startswith(
        "Lower spec.resources.cpu, set spec.resources.memory to at least 1Gi, set "
        "spec.resources.requests.ephemeral-storage and spec.resources.limits.ephemeral-storage, the limit at most 2 "
    )


@pytest.mark.parametrize(("bound", "size"), [("maximum", "lower"), ("minimum", "higher")])
def test_a_claim_of_the_wrong_size_needs_another_job(bound: str, size: str) -> None:
    said = advice(
        f"{bound} storage usage per PersistentVolumeClaim is 1Gi, but request is 5Gi", "persistentvolumeclaims"
    )
    assert said.startswith(f"Apply the FineTuneJob under another name with a {size} spec.output.storage.size, or ask")


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ("pods=1", []),
        ("count/jobs.batch=1", []),
        ("count/finetunejobs.hone.dev=1", []),
        ("persistentvolumeclaims=1", []),
        ("gold.storageclass.storage.k8s.io/persistentvolumeclaims=1", []),
        ("services=1,services.nodeports=1", []),
        ("requests.storage=50Gi", ["spec.output.storage.size"]),
        ("gold.storageclass.storage.k8s.io/requests.storage=50Gi", ["spec.output.storage.size"]),
        ("requests.amd.com/gpu=8", ["spec.resources.gpus"]),
        ("requests.amd.com/nic=8", ["spec.resources.limits.amd.com/nic"]),
        ("cpu=8,pods=1", ["spec.resources.cpu"]),
        ("limits.cpu=8,limits.memory=1Gi", ["spec.resources.limits.cpu", "spec.resources.memory"]),
        ("requests.ephemeral-storage=8Gi", ["spec.resources.requests.ephemeral-storage"]),
    ],
)
def test_an_exceeded_quota_names_only_fields_that_lower_it(asked: str, fields: list[str]) -> None:
    said = advice(f"exceeded quota: q, requested: {asked}, used: {asked}, limited: {asked}")
    named = re.findall(r"spec\.[\w./-]*\w", said.partition(" A FineTuneJob's ")[0])
    assert named == fields
    assert "emove what else uses the quota, or ask for a larger one." in said
    assert ("apply it under another name" in said) == ("spec.resources.gpus" in fields)


@pytest.mark.parametrize("words", ["", "no nodes", 'admission webhook "a" denied the request: maximum 3 replicas'])
def test_other_messages_are_not_of_a_quota(words: str) -> None:
    assert advise_on_quota(words) is None


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ('jobs.batch is forbidden: User "hone" cannot create resource "jobs" in API group "batch"', "`helm upgrade`"),
        ("jobs.batch \"x\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: no", CHILD_REFUSED.remedy),
    ],
)
def test_a_job_that_a_role_or_policy_refuses_is_a_refused_child(words: str, remedy: str) -> None:
    action = Create(JOBS, {"metadata": {"name": "faq-train"}})
    trouble = explain_write_failure(action, ApiError(403, words), 1)
    assert trouble
    assert trouble.stops_pods
    assert trouble.error.reason is CHILD_REFUSED
    assert remedy in trouble.error.remedy
