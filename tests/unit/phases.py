"""Both kinds in every phase of their lives, with the state that tools should see and its reason."""

from typing import Any

from adapter_states import ready, running
from hone_api.reasons import INVALID_SPEC, HoneError
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.finetunejob import plan as finetunejob_plan
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.inferenceservice import plan as inferenceservice_plan
from hone_operator.inferenceservice.plan import ObservedInferenceService
from hone_operator.objects.resources import Object
from hone_operator.reconcile.sync_failures import SyncFailure
from observed import (
    IMAGE,
    NOW,
    PREPARED,
    failure,
    finished_job,
    foreign,
    job_condition,
    job_object,
    observed_job,
    observed_service,
    parsed_job,
    pod,
    service_child,
    service_object,
    success,
    terminated,
    unschedulable,
)

GPU_JOB = job_object(resources={"gpus": 1}, status=PREPARED)


def refused_job() -> ObservedFineTuneJob:
    owner = job_object()
    observed = ObservedFineTuneJob(owner, parsed_job(owner), IMAGE)
    words = 'pods "x" is forbidden: exceeded quota: gpus'
    observed.sync_failures = [SyncFailure(explain_refusal(words), stops_pods=True)]
    return observed


def queued_job() -> ObservedFineTuneJob:
    observed = observed_job(job_object())
    assert observed.job
    observed.job["spec"]["suspend"] = True
    return observed


def conflicting_job() -> ObservedFineTuneJob:
    observed = observed_job(job_object())
    assert observed.config_map
    observed.config_map = foreign(observed.config_map)
    return observed


def leaving_job() -> ObservedFineTuneJob:
    observed = observed_job(job_object())
    assert observed.config_map
    observed.config_map["metadata"]["deletionTimestamp"] = "2026-03-01T11:59:00Z"
    return observed


def new_job(owner: Object) -> ObservedFineTuneJob:
    return ObservedFineTuneJob(owner, parsed_job(owner), IMAGE)


BROKEN = HoneError(INVALID_SPEC, "spec.x is wrong")
NO_IMAGE = pod(waiting={"reason": "ImagePullBackOff", "message": "not found"})
JOBS: dict[str, tuple[ObservedFineTuneJob, str, str]] = {
    "new": (new_job(job_object()), "Reconciling", "PodStarting"),
    "broken": (ObservedFineTuneJob(job_object(), BROKEN, IMAGE), "Stalled", "InvalidSpec"),
    "conflict": (conflicting_job(), "Stalled", "NameConflict"),
    "child in deletion": (leaving_job(), "Reconciling", "ChildLeaving"),
    "refused": (refused_job(), "Reconciling", "QuotaExceeded"),
    "no GPU": (
        observed_job(GPU_JOB, unschedulable("0/1 nodes: 1 Insufficient amd.com/gpu.")),
        "Reconciling",
        "Unschedulable",
    ),
    "no image": (observed_job(job_object(), NO_IMAGE), "Stalled", "ImagePullFailed"),
    "running": (
        observed_job(job_object(), pod(running={"startedAt": "2026-03-01T12:00:00Z"})),
        "Reconciling",
        "TrainerRunning",
    ),
    "suspended": (new_job(job_object(suspend=True)), "Ready", "Suspended"),
    "queued": (queued_job(), "Reconciling", "Queued"),
    "stopping": (
        observed_job(job_object(suspend=True), pod(running={"startedAt": "2026-03-01T11:00:00Z"})),
        "Reconciling",
        "Suspending",
    ),
    "retried": (observed_job(job_object(), pod(terminated=terminated(71, "no hub"))), "Reconciling", "Retrying"),
    "succeeded": (
        observed_job(
            job_object(), pod(terminated=terminated(0, success())), job_conditions=[job_condition("Complete")]
        ),
        "Ready",
        "Succeeded",
    ),
    "failed": (
        observed_job(
            job_object(),
            pod(terminated=terminated(65, failure("DatasetInvalid", "row 7"))),
            job_conditions=[job_condition("Failed", "PodFailurePolicy")],
        ),
        "Stalled",
        "DatasetInvalid",
    ),
    "failed for what might pass": (
        observed_job(job_object(), job_conditions=[job_condition("Failed", "DeadlineExceeded")]),
        "Stalled",
        "DeadlineExceeded",
    ),
}


def broken_service() -> ObservedInferenceService:
    observed = observed_service(service_object())
    observed.spec = BROKEN
    return observed


def service_of(*jobs: Object, **more: Any) -> ObservedInferenceService:
    return observed_service(service_object(), *jobs, **more)


def leaving(child: Object) -> Object:
    child["metadata"]["deletionTimestamp"] = "2026-03-01T11:59:00Z"
    return child


FAILED = job_object(status={"stage": "Failed", "conditions": []})
STARTING = pod("p1", container="engine", waiting={"reason": "ImagePullBackOff", "message": "not found"})
CHILD = service_child(service_object())
SERVICES: dict[str, tuple[ObservedInferenceService, str, str]] = {
    "no job": (service_of(), "Reconciling", "WaitingForFineTuneJob"),
    "job trains": (service_of(job_object()), "Reconciling", "WaitingForFineTuneJob"),
    "job failed": (service_of(FAILED), "Stalled", "FineTuneJobFailed"),
    "new": (service_of(finished_job()), "Reconciling", "RollingOut"),
    "broken": (broken_service(), "Stalled", "InvalidSpec"),
    "conflict": (service_of(finished_job(), service=foreign(CHILD)), "Stalled", "NameConflict"),
    "child in deletion": (
        service_of(finished_job(), service=leaving(service_child(service_object()))),
        "Reconciling",
        "ChildLeaving",
    ),
    "no image": (service_of(finished_job(), pods=[STARTING]), "Stalled", "ImagePullFailed"),
    "serving": (running(ready("p1"), ready("p2")), "Ready", "EnginesReady"),
    "no replicas": (running(), "Ready", "ScaledToZero"),
}


def objects() -> dict[str, tuple[Object, str]]:
    """Each object with the status of its phase, and the state."""
    found: dict[str, tuple[Object, str]] = {}
    for name, (job, state, _) in JOBS.items():
        found[f"FineTuneJob {name}"] = (
            job.owner | {"status": finetunejob_plan.plan_finetunejob(job, NOW).status},
            state,
        )
    for name, (service, state, _) in SERVICES.items():
        found[f"InferenceService {name}"] = (
            service.owner | {"status": inferenceservice_plan.plan_inferenceservice(service, NOW).status},
            state,
        )
    return found
