"""Resolve the spec of an InferenceService to what its engine loads.

In: the spec, and the FineTuneJobs that it names. Out: weights, adapters, mounts and variables of the engine. Every
engine uses the same result. Next: inferenceservice/compatibility.py and inferenceservice/children.py.
"""

from dataclasses import dataclass, field, replace

from hone_api.artifacts.manifest import BaseConfig
from hone_api.artifacts.trainer_reports import Parameters
from hone_api.common import ClaimPath
from hone_api.finetunejobs.sources import BaseModelSource
from hone_api.finetunejobs.spec import FineTuneJob, LoraOptions
from hone_api.finetunejobs.status import Artifact
from hone_api.inferenceservices.spec import AdapterSource, InferenceServiceSpec, ModelStatus, ServedModel
from hone_api.layout import CACHE, POD_CACHE, POD_CLAIMS, base_model_name
from hone_api.reasons import ADAPTER_MISMATCH, FINE_TUNE_JOB_FAILED, INVALID_SPEC, HoneError
from pydantic import ValidationError

from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import Volumes

WAITING = "WaitingForFineTuneJob"


class NotYet(Exception):
    """The service needs an artifact that does not exist yet. The message names the FineTuneJob and its stage."""


@dataclass(frozen=True)
class Weights:
    """The base model of the adapters, or the served model itself: a folder in the pod, or a name on the hub."""

    source: str
    name: str
    digest: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False

    @property
    def is_folder(self) -> bool:
        return self.source.startswith("/")


@dataclass(frozen=True)
class Adapter:
    """An adapter in the pod: an artifact, or a folder as PEFT saves it. `lora`: the options of its FineTuneJob."""

    name: str
    folder: str
    digest: str | None = None
    lora: LoraOptions | None = None
    own_template: bool = False


@dataclass
class Resolved:
    """The weights, adapters, volumes and variables of an engine, and the models that it will list.

    `own` is the adapter that spec.model itself names; `adapters` are those of spec.adapters. `claims`: the mounted
    claims that may hold the base model of an artifact. `parameters`: how many the weights have. It and `base_config`
    are known only where a FineTuneJob made the model or was trained on it.
    """

    weights: Weights
    models: list[ModelStatus]
    own: Adapter | None = None
    adapters: list[Adapter] = field(default_factory=list)
    base: str | None = None
    base_revision: str | None = None
    parameters: int | None = None
    base_config: BaseConfig = field(default_factory=BaseConfig)
    claims: dict[str, str] = field(default_factory=dict)
    volumes: Volumes = field(default_factory=Volumes)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def all_adapters(self) -> list[Adapter]:
        return [*([self.own] if self.own else []), *self.adapters]

    def mount(self, claim: str, path: str | None = None) -> str:
        """Mount a claim read-only, and return the folder in the pod of a path on it.

        The complete claim is mounted, so that folders that are added later are visible.
        """
        root = f"{POD_CLAIMS}/{claim}"
        self.volumes.claim(claim, root, read_only=True)
        return f"{root}/{path or ''}".rstrip("/")


@dataclass(frozen=True)
class _Finished:
    """A FineTuneJob that succeeded."""

    job: FineTuneJob
    artifact: Artifact
    parameters: int | None

    @property
    def lora(self) -> LoraOptions:
        return self.job.spec.lora or LoraOptions()

    @property
    def own_template(self) -> bool:
        return self.job.spec.dataset.chat_template is not None


@dataclass(frozen=True)
class _Base:
    """The model on which adapters must have been trained. `source` is None where the served model takes no adapters."""

    source: BaseModelSource | None
    of: str
    revision: str | None = None


def resolve(spec: InferenceServiceSpec, jobs: dict[str, Object | None]) -> Resolved:
    """Return what the engine loads.

    Raises NotYet while a FineTuneJob has no artifact, HoneError when it failed or the parts don't fit together.
    """
    served = spec.model
    if served.fine_tune_job:
        finished = _finished(served.fine_tune_job.name, jobs)
        resolved, base = _from_job(finished), _base_of(finished)
    elif served.claim:
        source = BaseModelSource(claim=served.claim)
        resolved, base = _from_claim(served.claim), _Base(source, _describe(source))
    else:
        resolved, base = _from_hub(served), _Base(BaseModelSource(name=served.name), str(served.name), served.revision)
    if base.source:
        resolved.base, resolved.base_revision = base.source.name, _commit(base.revision)
    for adapter in spec.adapters:
        _add_adapter(resolved, adapter, jobs, base)
    names = [model.name for model in resolved.models]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise HoneError(
            INVALID_SPEC, f"Two models would be called {repeated!r}", remedy="Rename one in spec.adapters[].name."
        )
    return resolved


def names_of_jobs(spec: InferenceServiceSpec) -> list[str]:
    """Return the names of the FineTuneJobs that the service needs."""
    references = [spec.model.fine_tune_job, *(adapter.fine_tune_job for adapter in spec.adapters)]
    return list(dict.fromkeys(reference.name for reference in references if reference))


def claims_of(spec: InferenceServiceSpec, jobs: dict[str, Object | None]) -> list[str]:
    """Return the claims that every engine mounts, as far as they are known yet."""
    try:
        volumes = resolve(spec, jobs).volumes.volumes
    except (NotYet, HoneError):
        return []
    return [str(v["persistentVolumeClaim"]["claimName"]) for v in volumes if "persistentVolumeClaim" in v]


def _finished(name: str, jobs: dict[str, Object | None]) -> _Finished:
    owner = jobs.get(name)
    if owner is None:
        raise NotYet(f"FineTuneJob {name} does not exist in this namespace.")
    status = owner.get("status") or {}
    stage = status.get("stage") or "Pending"
    if stage == "Failed":
        why = next((c["message"] for c in status.get("conditions", []) if c["type"] == "Failed"), "")
        raise HoneError(FINE_TUNE_JOB_FAILED, f"FineTuneJob {name} failed: {why}")
    if stage != "Succeeded" or not status.get("artifact"):
        raise NotYet(f"FineTuneJob {name} has not finished: its stage is {stage}.")
    try:
        job = FineTuneJob.model_validate({field: value for field, value in owner.items() if field != "status"})
        counted = Parameters.model_validate(status["parameters"]).total if status.get("parameters") else None
        return _Finished(job, Artifact.model_validate(status["artifact"]), counted)
    except ValidationError as error:
        raise NotYet(f"FineTuneJob {name} can't be read: {error.errors()[0]['msg']}") from None


def _base_of(finished: _Finished) -> _Base:
    artifact = finished.artifact
    takes_adapters = artifact.kind in ("adapter", "both")
    of = f"the {artifact.kind} model of FineTuneJob {finished.job.name}"
    return _Base(finished.job.spec.model if takes_adapters else None, of, artifact.base_revision)


def _from_job(finished: _Finished) -> Resolved:
    """Return what an engine loads for a FineTuneJob.

    Nothing is downloaded: the trainer's copy of the base model serves.
    """
    artifact, source, name = finished.artifact, finished.job.spec.model, finished.job.name
    resolved = Resolved(Weights("", name, digest=artifact.digest, trust_remote_code=source.trust_remote_code), [])
    resolved.env["HF_HUB_OFFLINE"] = "1"
    _learn(resolved, finished)
    folder = resolved.mount(artifact.claim, artifact.path)
    if artifact.kind in ("merged", "model"):
        resolved.weights = replace(resolved.weights, source=folder)
        resolved.models = [ModelStatus(name=name, kind=artifact.kind, digest=artifact.digest)]
        return resolved
    resolved.own = Adapter(name, folder, artifact.digest, finished.lora, finished.own_template)
    resolved.models = [
        ModelStatus(name=_describe(source), kind="base"),
        ModelStatus(name=name, kind="adapter", digest=artifact.digest),
    ]
    resolved.weights = Weights(
        _base_folder(resolved, finished, folder),
        _describe(source),
        revision=artifact.base_revision,
        dtype=source.dtype,
        trust_remote_code=source.trust_remote_code,
    )
    return resolved


def _base_folder(resolved: Resolved, finished: _Finished, artifact: str) -> str:
    """Return the folder of the base model: on its claim, else in the trainer's cache at the commit of the training.

    The cache has the layout of huggingface_hub.
    """
    source, revision, cache = finished.job.spec.model, finished.artifact.base_revision, finished.job.spec.cache
    if source.claim:
        return resolved.mount(source.claim.name, source.claim.path)
    home = resolved.env["HF_HOME"] = resolved.mount(cache.claim.name) if cache else f"{artifact}/{CACHE}"
    name = str(source.name)
    return f"{home}/hub/models--{name.replace('/', '--')}/snapshots/{revision}" if revision else name


def _from_hub(served: ServedModel) -> Resolved:
    name = str(served.name)
    weights = Weights(name, name, revision=served.revision)
    resolved = Resolved(weights, [ModelStatus(name=name, kind="base")], env={"HF_HOME": POD_CACHE})
    resolved.volumes.empty_dir("cache", POD_CACHE)
    return resolved


def _from_claim(claim: ClaimPath) -> Resolved:
    """Return what an engine loads from a claim, which may also hold an artifact's base model."""
    name = _describe(BaseModelSource(claim=claim))
    resolved = Resolved(Weights("", name), [ModelStatus(name=name, kind="base")], env={"HF_HUB_OFFLINE": "1"})
    resolved.claims[claim.name] = resolved.mount(claim.name)
    resolved.weights = Weights(resolved.mount(claim.name, claim.path), name)
    return resolved


def _add_adapter(resolved: Resolved, adapter: AdapterSource, jobs: dict[str, Object | None], base: _Base) -> None:
    digest = None
    if adapter.fine_tune_job:
        finished = _finished(adapter.fine_tune_job.name, jobs)
        artifact, digest = finished.artifact, finished.artifact.digest
        _check_base(adapter.name, finished, base)
        _learn(resolved, finished)
        folder = resolved.mount(artifact.claim, artifact.path)
        resolved.adapters.append(Adapter(adapter.name, folder, digest, finished.lora))
    elif adapter.claim:
        resolved.adapters.append(Adapter(adapter.name, resolved.mount(adapter.claim.name, adapter.claim.path)))
    resolved.models.append(ModelStatus(name=adapter.name, kind="adapter", digest=digest))


def _learn(resolved: Resolved, finished: _Finished) -> None:
    """Take parameters and base config from a FineTuneJob, which was trained on the served model or made it."""
    resolved.parameters = resolved.parameters or finished.parameters
    resolved.base_config = finished.artifact.base_config or resolved.base_config


def _check_base(name: str, finished: _Finished, base: _Base) -> None:
    which = f"FineTuneJob {finished.job.name}"
    if finished.artifact.kind not in ("adapter", "both"):
        found = f"Adapter {name}: {which} made a {finished.artifact.kind}, not an adapter"
        remedy = (
            "Serve it as spec.model.fineTuneJob instead of in spec.adapters, or train it with spec.method: lora or "
            "qlora and spec.output.save: adapter or both."
        )
        raise HoneError(ADAPTER_MISMATCH, found, remedy=remedy)
    source = finished.job.spec.model
    if base.source is None or not _is_same(base.source, source):
        served = base.of if base.source is None else _describe(base.source)
        found = f"Adapter {name}: {which} was trained on {_describe(source)}, and the service's model is {served}"
        raise HoneError(ADAPTER_MISMATCH, found)
    trained, is_served = finished.artifact.base_revision, _commit(base.revision)
    if trained and is_served and trained != is_served:
        found = f"Adapter {name}: {which} was trained on {_describe(source)} at {trained}, and {is_served} is served"
        remedy = (
            f"Train it again with spec.model.revision: {is_served}, or serve the adapter's own commit: spec.model.name "
            f"with spec.model.revision: {trained}."
        )
        raise HoneError(ADAPTER_MISMATCH, found, remedy=remedy)


def _commit(revision: str | None) -> str | None:
    """Return the revision if it is a commit. Only the hub knows the commit of a branch or tag."""
    is_commit = revision and len(revision) == 40 and set(revision) <= set("0123456789abcdef")
    return revision if is_commit else None


def _is_same(one: BaseModelSource, other: BaseModelSource) -> bool:
    def identity(source: BaseModelSource) -> tuple[str | None, str | None, str]:
        claim = source.claim
        return source.name, claim.name if claim else None, (claim.path or "").strip("/") if claim else ""

    return identity(one) == identity(other)


def _describe(source: BaseModelSource) -> str:
    claim = source.claim
    return base_model_name(source.name, claim.name if claim else None, claim.path if claim else None)
