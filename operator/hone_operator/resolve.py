"""From the spec of an InferenceService, and the FineTuneJobs it names, to what an engine loads."""

from dataclasses import dataclass, field

from hone_api.common import ClaimPath
from hone_api.finetunejob import FineTuneJob
from hone_api.finetunejobstatus import Artifact
from hone_api.inferenceservice import AdapterSource, InferenceServiceSpec, ModelStatus
from hone_api.layout import POD_CACHE, POD_CLAIMS, base_model_name
from hone_api.reasons import ADAPTER_MISMATCH, INVALID_SPEC, HoneError
from hone_api.sources import BaseModelSource
from pydantic import ValidationError

from hone_operator.podspec import Volumes
from hone_operator.resources import Object

POD_ARTIFACT = "/artifact"
POD_ADAPTERS = "/adapters"

WAITING = "WaitingForFineTuneJob"


class NotYet(Exception):
    """The artifact of a FineTuneJob that the service needs is not there (yet); the message names job and stage."""


@dataclass
class Resolved:
    """The engine's arguments, what it mounts, and the models that it will list."""

    arguments: list[str]
    models: list[ModelStatus]
    volumes: Volumes = field(default_factory=Volumes)
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Finished:
    """A FineTuneJob that succeeded."""

    job: FineTuneJob
    artifact: Artifact


def resolve(spec: InferenceServiceSpec, jobs: dict[str, Object | None]) -> Resolved:
    """Raises NotYet while a FineTuneJob has no artifact, HoneError when the parts don't fit together."""
    served = spec.model
    if served.fine_tune_job:
        finished = _finished(served.fine_tune_job.name, jobs)
        resolved = _from_job(finished)
        base = finished.job.spec.model if finished.artifact.kind in ("adapter", "both") else None
        of = f"the {finished.artifact.kind} model of FineTuneJob {finished.job.name}"
    elif served.claim:
        resolved = _from_claim(served.claim)
        base, of = BaseModelSource(claim=served.claim), _describe(BaseModelSource(claim=served.claim))
    else:
        name = str(served.name)
        revision = ["--revision", served.revision] if served.revision else []
        resolved = Resolved([name, *revision], [ModelStatus(name=name, kind="base")], env={"HF_HOME": POD_CACHE})
        resolved.volumes.empty_dir("cache", POD_CACHE)
        base, of = BaseModelSource(name=name), name
    for adapter in spec.adapters:
        _add_adapter(resolved, adapter, jobs, base, of)
    names = [model.name for model in resolved.models]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise HoneError(
            INVALID_SPEC, f"Two models would be called {repeated!r}", remedy="Rename one in spec.adapters[].name."
        )
    return resolved


def names_of_jobs(spec: InferenceServiceSpec) -> list[str]:
    """The FineTuneJobs that the service needs."""
    references = [spec.model.fine_tune_job, *(adapter.fine_tune_job for adapter in spec.adapters)]
    return list(dict.fromkeys(reference.name for reference in references if reference))


def _finished(name: str, jobs: dict[str, Object | None]) -> _Finished:
    owner = jobs.get(name)
    if owner is None:
        raise NotYet(f"FineTuneJob {name} does not exist in this namespace.")
    status = owner.get("status") or {}
    stage = status.get("stage") or "Pending"
    if stage == "Failed":
        why = next((c["message"] for c in status.get("conditions", []) if c["type"] == "Failed"), "")
        raise NotYet(f"FineTuneJob {name} failed: {why}")
    if stage != "Succeeded" or not status.get("artifact"):
        raise NotYet(f"FineTuneJob {name} has not finished: its stage is {stage}.")
    try:
        job = FineTuneJob.model_validate({field: value for field, value in owner.items() if field != "status"})
        return _Finished(job, Artifact.model_validate(status["artifact"]))
    except ValidationError as error:
        raise NotYet(f"FineTuneJob {name} can't be read: {error.errors()[0]['msg']}") from None


def _from_job(finished: _Finished) -> Resolved:
    """Nothing is downloaded: the base model comes from where the trainer had it."""
    artifact, source = finished.artifact, finished.job.spec.model
    name = finished.job.name
    arguments = [POD_ARTIFACT, "--name", name, "--expect", f"{name}={artifact.digest}"]
    models: list[ModelStatus] = []
    resolved = Resolved(arguments, models, env={"HF_HUB_OFFLINE": "1"})
    resolved.volumes.claim(artifact.claim, POD_ARTIFACT, sub_path=artifact.path, read_only=True)
    if artifact.kind in ("merged", "model"):
        models.append(ModelStatus(name=name, kind=artifact.kind, digest=artifact.digest))
        return resolved
    models.append(ModelStatus(name=_describe(source), kind="base"))
    models.append(ModelStatus(name=name, kind="adapter", digest=artifact.digest))
    if source.claim:
        path = f"{POD_CLAIMS}/{source.claim.name}"
        resolved.volumes.claim(source.claim.name, path, read_only=True)
        arguments += ["--claim", f"{source.claim.name}={path}"]
    elif finished.job.spec.cache:
        resolved.volumes.claim(finished.job.spec.cache.claim.name, POD_CACHE, read_only=True)
        resolved.env["HF_HOME"] = POD_CACHE
    return resolved


def _from_claim(claim: ClaimPath) -> Resolved:
    """The claim is mounted whole: an artifact's base model may lie on it beside the artifact."""
    name = _describe(BaseModelSource(claim=claim))
    root = f"{POD_CLAIMS}/{claim.name}"
    folder = f"{root}/{claim.path}" if claim.path else root
    resolved = Resolved(
        [folder, "--name", name, "--claim", f"{claim.name}={root}"],
        [ModelStatus(name=name, kind="base")],
        env={"HF_HUB_OFFLINE": "1"},
    )
    resolved.volumes.claim(claim.name, root, read_only=True)
    return resolved


def _add_adapter(
    resolved: Resolved, adapter: AdapterSource, jobs: dict[str, Object | None], base: BaseModelSource | None, of: str
) -> None:
    path = f"{POD_ADAPTERS}/{adapter.name}"
    digest = None
    if adapter.fine_tune_job:
        finished = _finished(adapter.fine_tune_job.name, jobs)
        artifact, digest = finished.artifact, finished.artifact.digest
        which = f"FineTuneJob {finished.job.name}"
        if artifact.kind not in ("adapter", "both"):
            raise HoneError(ADAPTER_MISMATCH, f"Adapter {adapter.name}: {which} made a {artifact.kind}, not an adapter")
        if base is None or not _is_same(base, finished.job.spec.model):
            trained_on = _describe(finished.job.spec.model)
            served = of if base is None else _describe(base)
            found = f"Adapter {adapter.name}: {which} was trained on {trained_on}, and the service's model is {served}"
            raise HoneError(ADAPTER_MISMATCH, found)
        resolved.volumes.claim(artifact.claim, path, sub_path=artifact.path, read_only=True)
    elif adapter.claim:
        resolved.volumes.claim(adapter.claim.name, path, sub_path=adapter.claim.path, read_only=True)
    resolved.arguments += ["--adapter", f"{adapter.name}={path}"]
    if digest:
        resolved.arguments += ["--expect", f"{adapter.name}={digest}"]
    resolved.models.append(ModelStatus(name=adapter.name, kind="adapter", digest=digest))


def _is_same(one: BaseModelSource, other: BaseModelSource) -> bool:
    def identity(source: BaseModelSource) -> tuple[str | None, str | None, str]:
        claim = source.claim
        return source.name, claim.name if claim else None, (claim.path or "").strip("/") if claim else ""

    return identity(one) == identity(other)


def _describe(source: BaseModelSource) -> str:
    claim = source.claim
    return base_model_name(source.name, claim.name if claim else None, claim.path if claim else None)
