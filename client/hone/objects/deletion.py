"""Decide what `hone delete` removes, what it leaves, and whether a claim may go. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hone_api.common import GROUP
from hone_api.layout import FINETUNEJOB_LABEL, make_artifact_path

from hone.errors import ClientError
from hone.objects.names import JOB
from hone.objects.views import Object


@dataclass(frozen=True)
class Neighbours:
    """The other objects of the namespace: all jobs and services of Hone, all pods, and what makes pods.

    unread: which of these could not be read, and why, a sentence for each kind.
    """

    jobs: Sequence[Object] = ()
    services: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    workloads: Sequence[Object] = ()
    unread: Sequence[str] = ()


@dataclass(frozen=True)
class Deletion:
    """The lines about what goes, what stays, who is affected, and what is unknown; and the claim that is deleted."""

    goes: tuple[str, ...]
    stays: tuple[str, ...]
    affected: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    claim: str | None = None


def find_output_claim(job: Object) -> tuple[str, bool]:
    """Return the name of a job's output claim, and whether Hone made the claim for it."""
    named = ((job.get("spec") or {}).get("output") or {}).get("claim") or {}
    return (str(named["name"]), False) if named.get("name") else (str(job["metadata"]["name"]), True)


def plan_deletion(body: Object, around: Neighbours, *, with_claim: bool) -> Deletion:
    """Return what a deletion does. Raises ClientError where the claim must stay."""
    name = body["metadata"]["name"]
    if body["kind"] != JOB.name:
        if with_claim:
            raise ClientError(
                f"--with-claim: InferenceService {name} has no claim of its own", "Leave out --with-claim."
            )
        engines = "its Deployment, Service and engine pods: requests fail"
        return Deletion((f"InferenceService {name}", engines), ("all artifacts and claims that it served",))
    claim, is_own = find_output_claim(body)
    served = [each["metadata"]["name"] for each in around.services if name in find_service_jobs(each)]
    affected = tuple(
        f"InferenceService {each} uses the job: it keeps running, and can't be changed or started without the job"
        for each in served
    )
    goes = (f"FineTuneJob {name}, with its status", "its Jobs and pods, with their logs")
    folder = make_artifact_path(body["metadata"].get("namespace") or "default", name)
    if not with_claim:
        kept = f"claim {claim}, with {_describe_content(body)} in folder {folder}"
        return Deletion(goes, (kept,), affected)
    if not is_own:
        raise ClientError(
            f"--with-claim: spec.output.claim names claim {claim}, which Hone did not make for this job",
            f"Leave out --with-claim; remove the folder {folder} on the claim, or the claim, with kubectl.",
        )
    if users := list(find_users(claim, body, around)):
        raise ClientError(
            f"--with-claim: claim {claim} is used by {', '.join(users)}",
            "Delete or change these first, or leave out --with-claim: the claim then stays.",
        )
    unknown = tuple(f"whether other objects mount the claim: {each}" for each in around.unread)
    lost = f"claim {claim}, with {_describe_content(body)}: this can't be undone"
    return Deletion((*goes, lost), (), affected, unknown, claim)


def require_own_claim(claim: Object, job: str) -> None:
    """Raise ClientError unless Hone made the claim for this job."""
    name = claim["metadata"]["name"]
    if (claim["metadata"].get("labels") or {}).get(FINETUNEJOB_LABEL) != job:
        raise ClientError(
            f"--with-claim: claim {name} has no label {FINETUNEJOB_LABEL}={job}: Hone did not make it for this job",
            "Leave out --with-claim, and delete the claim with kubectl if nothing on it is needed.",
        )


def find_users(claim: str, job: Object, around: Neighbours) -> Iterator[str]:
    """Yield what else uses the output claim of a job, as `Kind name`."""
    name = job["metadata"]["name"]
    for other in around.jobs:
        if other["metadata"]["name"] != name and claim in _find_job_claims(other):
            yield f"FineTuneJob {other['metadata']['name']}"
    for service in around.services:
        if name in find_service_jobs(service) or claim in _find_service_claims(service):
            yield f"InferenceService {service['metadata']['name']}"
    for pod in around.pods:
        is_own = (pod["metadata"].get("labels") or {}).get(FINETUNEJOB_LABEL) == name
        has_ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        # Kubernetes keeps a deleted claim until the pods that mount it are gone.
        is_leaving = bool(pod["metadata"].get("deletionTimestamp"))
        if not (is_own or has_ended or is_leaving) and claim in find_pod_claims(pod):
            yield f"Pod {pod['metadata']['name']}"
    for workload in around.workloads:
        if not _is_of_hone(workload) and not _has_ended(workload) and claim in find_pod_claims(_get_template(workload)):
            yield f"{workload['kind']} {workload['metadata']['name']}"


def _is_of_hone(workload: Object) -> bool:
    """Return whether a FineTuneJob or InferenceService made it, which is found by its own fields."""
    owners = workload["metadata"].get("ownerReferences") or []
    return any(str(owner.get("apiVersion")).startswith(f"{GROUP}/") for owner in owners)


def _has_ended(workload: Object) -> bool:
    conditions = (workload.get("status") or {}).get("conditions") or []
    return workload["kind"] == "Job" and any(
        each.get("type") in ("Complete", "Failed") and each.get("status") == "True" for each in conditions
    )


def _get_template(workload: Object) -> Object:
    """Return the template of the pods that a workload makes, now or later."""
    spec = workload.get("spec") or {}
    if workload["kind"] == "CronJob":
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    template: Object = spec.get("template") or {}
    return template


def find_pod_claims(pod: Object) -> set[str]:
    """Return the names of the claims that a pod mounts."""
    volumes = (pod.get("spec") or {}).get("volumes") or []
    return {each["persistentVolumeClaim"]["claimName"] for each in volumes if each.get("persistentVolumeClaim")}


def _describe_content(job: Object) -> str:
    artifact = (job.get("status") or {}).get("artifact")
    return f"artifact {artifact['digest']}" if artifact else "checkpoints and what else was saved"


def _find_job_claims(job: Object) -> set[str]:
    spec = job.get("spec") or {}
    sources = [*(spec.get(part) or {} for part in ("model", "dataset", "cache")), *(spec.get("datasets") or [])]
    found = {str(source["claim"].get("name")) for source in sources if source.get("claim")}
    return found | {find_output_claim(job)[0]} | _find_volume_claims(spec)


def _find_service_claims(service: Object) -> set[str]:
    spec = service.get("spec") or {}
    sources: list[Object] = [spec.get("model") or {}, spec.get("cache") or {}, *(spec.get("adapters") or [])]
    return {str(source["claim"].get("name")) for source in sources if source.get("claim")} | _find_volume_claims(spec)


def _find_volume_claims(spec: Object) -> set[str]:
    return find_pod_claims({"spec": spec.get("pod") or {}})


def find_service_jobs(service: Object) -> set[str]:
    """Return the names of the jobs whose artifacts a service serves."""
    spec = service.get("spec") or {}
    sources: Iterable[Object] = [spec.get("model") or {}, *(spec.get("adapters") or [])]
    return {str(source["fineTuneJob"].get("name")) for source in sources if source.get("fineTuneJob")}
