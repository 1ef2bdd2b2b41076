"""Resolve the spec of an InferenceService to what its engine loads.

In: the spec, and the FineTuneJobs that it names. Out: weights, adapters, mounts and variables of the engine. Every
engine uses the same result. Next: inferenceservice/compatibility.py and inferenceservice/children.py.
"""

from dataclasses import dataclass, field, replace

from hone_api.artifacts.adapter_rules import fits_revision, is_commit
from hone_api.artifacts.manifest import BaseConfig
from hone_api.artifacts.trainer_reports import Parameters
from hone_api.common import ClaimPath
from hone_api.finetunejobs.sources import BaseModelSource
from hone_api.finetunejobs.spec import FineTuneJob, LoraOptions
from hone_api.finetunejobs.status import Artifact
from hone_api.inferenceservices.spec import AdapterSource, InferenceServiceSpec, ModelStatus
from hone_api.layout import (
    ADAPTER_LINKS,
    CACHE,
    MODEL_LINK,
    POD_CACHE,
    POD_CLAIMS,
    POD_DOWNLOADED,
    choose_base_model_name,
    make_remote_folder,
)
from hone_api.reasons import ADAPTER_MISMATCH, FINE_TUNE_JOB_FAILED, INVALID_SPEC, HoneError
from pydantic import ValidationError

from hone_operator.engines.uri_download import UriDownloads
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import Volumes

WAITING_FOR_JOB = "WaitingForFineTuneJob"
# Where transformers copies the code that a model brings: not into a cache that is mounted read-only.
MODULES_CACHE = "/tmp/modules"


class ArtifactNotReady(Exception):
    """The service needs an artifact that does not exist yet. The message names the FineTuneJob and its stage."""


@dataclass(frozen=True)
class ModelWeights:
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
class HubDownload:
    """A model that a container of Hone downloads before the engine starts, into a claim or else a volume of the pod.

    `link`: becomes a link to the model's folder in the cache.
    """

    name: str
    revision: str | None
    link: str
    claim: str | None


@dataclass(frozen=True)
class ResolvedAdapter:
    """An adapter in the pod: an artifact, or a folder as PEFT saves it. `lora`: the options of its FineTuneJob."""

    name: str
    folder: str
    digest: str | None = None
    lora: LoraOptions | None = None
    has_own_template: bool = False


@dataclass
class ResolvedModels:
    """The weights, adapters, volumes and variables of an engine, and the models that it will list.

    `model_adapter` is the adapter that spec.model itself names; `adapters` are those of spec.adapters. `claims`: the
    mounted claims that may hold the base model of an artifact. `parameter_count`: of the weights. It and `base_config`
    are known only where a FineTuneJob made the model or was trained on it. `download`: None where the engine downloads
    its model itself, or none is downloaded. `uri_downloads`: the models and adapters at URIs.
    """

    weights: ModelWeights
    models: list[ModelStatus]
    model_adapter: ResolvedAdapter | None = None
    adapters: list[ResolvedAdapter] = field(default_factory=list)
    base_name: str | None = None
    base_revision: str | None = None
    parameter_count: int | None = None
    base_config: BaseConfig = field(default_factory=BaseConfig)
    claims: dict[str, str] = field(default_factory=dict)
    download: HubDownload | None = None
    uri_downloads: UriDownloads = field(default_factory=UriDownloads)
    volumes: Volumes = field(default_factory=Volumes)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def all_adapters(self) -> list[ResolvedAdapter]:
        return [*([self.model_adapter] if self.model_adapter else []), *self.adapters]

    def mount_claim(self, claim: str, path: str | None = None) -> str:
        """Mount a claim read-only, and return the folder in the pod of a path on it.

        The complete claim is mounted, so that folders that are added later are visible.
        """
        root = f"{POD_CLAIMS}/{claim}"
        self.volumes.add_claim(claim, root, read_only=True)
        return f"{root}/{path or ''}".rstrip("/")


@dataclass(frozen=True)
class _FinishedJob:
    """A FineTuneJob that succeeded."""

    job: FineTuneJob
    artifact: Artifact
    parameter_count: int | None

    @property
    def lora(self) -> LoraOptions:
        return self.job.spec.lora or LoraOptions()

    @property
    def has_own_template(self) -> bool:
        return self.job.spec.chat_template is not None


@dataclass(frozen=True)
class _AdapterBase:
    """The model on which adapters must have been trained. `source` is None where the served model takes no adapters."""

    source: BaseModelSource | None
    description: str
    revision: str | None = None


def resolve_models(spec: InferenceServiceSpec, jobs: dict[str, Object | None]) -> ResolvedModels:
    """Return what the engine loads.

    Raises ArtifactNotReady while a FineTuneJob has no artifact, HoneError when it failed or the parts don't fit
    together.
    """
    served = spec.model
    if served.fine_tune_job:
        finished = _read_finished_job(served.fine_tune_job.name, jobs)
        resolved, base = _resolve_job(finished), _find_adapter_base(finished)
    elif served.claim:
        source = BaseModelSource(claim=served.claim)
        resolved, base = _resolve_claim(served.claim), _AdapterBase(source, _describe_source(source))
    elif served.uri:
        source = BaseModelSource(uri=served.uri, endpoint=served.endpoint)
        resolved, base = _resolve_uri(spec), _AdapterBase(source, _describe_source(source))
    else:
        resolved, base = (
            _resolve_hub_model(spec),
            _AdapterBase(BaseModelSource(name=served.name), str(served.name), served.revision),
        )
    if base.source:
        resolved.base_name, resolved.base_revision = base.source.name, _as_commit(base.revision)
    for adapter in spec.adapters:
        _add_adapter(resolved, spec, adapter, jobs, base)
    names = [model.name for model in resolved.models]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise HoneError(
            INVALID_SPEC, f"Two models would be called {repeated!r}", remedy="Rename one in spec.adapters[].name."
        )
    return resolved


def list_needed_jobs(spec: InferenceServiceSpec) -> list[str]:
    """Return the names of the FineTuneJobs that the service needs."""
    references = [spec.model.fine_tune_job, *(adapter.fine_tune_job for adapter in spec.adapters)]
    return list(dict.fromkeys(reference.name for reference in references if reference))


def list_needed_claims(spec: InferenceServiceSpec, jobs: dict[str, Object | None]) -> list[str]:
    """Return the claims that every engine mounts, as far as they are known yet."""
    try:
        volumes = resolve_models(spec, jobs).volumes.volumes
    except (ArtifactNotReady, HoneError):
        return []
    return [str(v["persistentVolumeClaim"]["claimName"]) for v in volumes if "persistentVolumeClaim" in v]


def _read_finished_job(name: str, jobs: dict[str, Object | None]) -> _FinishedJob:
    owner = jobs.get(name)
    if owner is None:
        raise ArtifactNotReady(f"FineTuneJob {name} does not exist in this namespace.")
    status = owner.get("status") or {}
    stage = status.get("stage") or "Pending"
    if stage == "Failed":
        why = next((c["message"] for c in status.get("conditions", []) if c["type"] == "Failed"), "")
        raise HoneError(FINE_TUNE_JOB_FAILED, f"FineTuneJob {name} failed: {why}")
    if stage != "Succeeded" or not status.get("artifact"):
        raise ArtifactNotReady(f"FineTuneJob {name} has not finished: its stage is {stage}.")
    try:
        job = FineTuneJob.model_validate({field: value for field, value in owner.items() if field != "status"})
        counted = Parameters.model_validate(status["parameters"]).total if status.get("parameters") else None
        return _FinishedJob(job, Artifact.model_validate(status["artifact"]), counted)
    except ValidationError as error:
        raise ArtifactNotReady(f"FineTuneJob {name} can't be read: {error.errors()[0]['msg']}") from None


def _find_adapter_base(finished: _FinishedJob) -> _AdapterBase:
    artifact = finished.artifact
    takes_adapters = artifact.kind in ("adapter", "both")
    of = f"the {artifact.kind} model of FineTuneJob {finished.job.name}"
    return _AdapterBase(finished.job.spec.model if takes_adapters else None, of, artifact.base_revision)


def _resolve_job(finished: _FinishedJob) -> ResolvedModels:
    """Return what an engine loads for a FineTuneJob.

    Nothing is downloaded: the trainer's copy of the base model serves.
    """
    artifact, source, name = finished.artifact, finished.job.spec.model, finished.job.name
    resolved = ResolvedModels(
        ModelWeights("", name, digest=artifact.digest, trust_remote_code=source.trust_remote_code), []
    )
    resolved.env["HF_HUB_OFFLINE"] = "1"
    _copy_base_properties(resolved, finished)
    folder = resolved.mount_claim(artifact.claim, artifact.path)
    if artifact.kind in ("merged", "model"):
        resolved.weights = replace(resolved.weights, source=folder)
        resolved.models = [ModelStatus(name=name, kind=artifact.kind, digest=artifact.digest)]
        return resolved
    resolved.model_adapter = ResolvedAdapter(name, folder, artifact.digest, finished.lora, finished.has_own_template)
    resolved.models = [
        ModelStatus(name=_describe_source(source), kind="base"),
        ModelStatus(name=name, kind="adapter", digest=artifact.digest),
    ]
    resolved.weights = ModelWeights(
        _find_base_folder(resolved, finished, folder),
        _describe_source(source),
        revision=artifact.base_revision,
        dtype=source.dtype,
        trust_remote_code=source.trust_remote_code,
    )
    return resolved


def _find_base_folder(resolved: ResolvedModels, finished: _FinishedJob, artifact: str) -> str:
    """Return the folder of the base model: on its claim, else in the trainer's cache at the commit of the training.

    The cache has the layout of huggingface_hub.
    """
    source, revision, cache = finished.job.spec.model, finished.artifact.base_revision, finished.job.spec.cache
    if source.claim:
        return resolved.mount_claim(source.claim.name, source.claim.path)
    home = resolved.env["HF_HOME"] = resolved.mount_claim(cache.claim.name) if cache else f"{artifact}/{CACHE}"
    if source.uri and revision:
        return f"{home}/{make_remote_folder(revision)}"
    name = str(source.name)
    return f"{home}/hub/models--{name.replace('/', '--')}/snapshots/{revision}" if revision else name


def _resolve_hub_model(spec: InferenceServiceSpec) -> ResolvedModels:
    served, name = spec.model, str(spec.model.name)
    if spec.cache or spec.token_secret:
        return _resolve_download(spec)
    weights = ModelWeights(name, name, revision=served.revision)
    resolved = ResolvedModels(weights, [ModelStatus(name=name, kind="base")], env={"HF_HOME": POD_CACHE})
    resolved.volumes.add_empty_dir("cache", POD_CACHE)
    return resolved


def _resolve_download(spec: InferenceServiceSpec) -> ResolvedModels:
    """Return what an engine loads after a container of Hone has downloaded it; hub_download.py builds that."""
    served, name, link = spec.model, str(spec.model.name), f"{POD_DOWNLOADED}/{MODEL_LINK}"
    claim = spec.cache.claim.name if spec.cache else None
    resolved = ResolvedModels(
        ModelWeights(link, name),
        [ModelStatus(name=name, kind="base")],
        download=HubDownload(name, served.revision, link, claim),
        env={"HF_HOME": POD_CACHE, "HF_MODULES_CACHE": MODULES_CACHE},
    )
    if claim:
        resolved.volumes.add_claim(claim, POD_CACHE, read_only=True)
    else:
        resolved.volumes.add_empty_dir("cache", POD_CACHE, read_only=True)
    resolved.volumes.add_empty_dir("downloaded", POD_DOWNLOADED, read_only=True)
    return resolved


def _resolve_claim(claim: ClaimPath) -> ResolvedModels:
    """Return what an engine loads from a claim, which may also hold an artifact's base model."""
    name = _describe_source(BaseModelSource(claim=claim))
    resolved = ResolvedModels(
        ModelWeights("", name), [ModelStatus(name=name, kind="base")], env={"HF_HUB_OFFLINE": "1"}
    )
    resolved.claims[claim.name] = resolved.mount_claim(claim.name)
    resolved.weights = ModelWeights(resolved.mount_claim(claim.name, claim.path), name)
    return resolved


def _resolve_uri(spec: InferenceServiceSpec) -> ResolvedModels:
    """Return what an engine loads after a container of Hone has downloaded it; uri_download.py builds that."""
    served, name = spec.model, choose_base_model_name(None, None, spec.model.uri)
    resolved = ResolvedModels(
        ModelWeights("", name, digest=served.digest),
        [ModelStatus(name=name, kind="base", digest=served.digest)],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": POD_CACHE, "HF_MODULES_CACHE": MODULES_CACHE},
    )
    link = resolved.uri_downloads.add(resolved.volumes, spec, served, "spec.model", MODEL_LINK)
    resolved.weights = replace(resolved.weights, source=link)
    return resolved


def _add_adapter(
    resolved: ResolvedModels,
    spec: InferenceServiceSpec,
    adapter: AdapterSource,
    jobs: dict[str, Object | None],
    base: _AdapterBase,
) -> None:
    digest = adapter.digest
    if adapter.fine_tune_job:
        finished = _read_finished_job(adapter.fine_tune_job.name, jobs)
        artifact, digest = finished.artifact, finished.artifact.digest
        _check_base(adapter.name, finished, base)
        _copy_base_properties(resolved, finished)
        folder = resolved.mount_claim(artifact.claim, artifact.path)
        resolved.adapters.append(ResolvedAdapter(adapter.name, folder, digest, finished.lora))
    elif adapter.claim:
        resolved.adapters.append(
            ResolvedAdapter(adapter.name, resolved.mount_claim(adapter.claim.name, adapter.claim.path))
        )
    elif adapter.uri:
        where = f"spec.adapters[{spec.adapters.index(adapter)}]"
        link = f"{ADAPTER_LINKS}/{adapter.name}"
        folder = resolved.uri_downloads.add(resolved.volumes, spec, adapter, where, link)
        resolved.adapters.append(ResolvedAdapter(adapter.name, folder, digest))
    resolved.models.append(ModelStatus(name=adapter.name, kind="adapter", digest=digest))


def _copy_base_properties(resolved: ResolvedModels, finished: _FinishedJob) -> None:
    """Take parameters and base config from a FineTuneJob, which was trained on the served model or made it."""
    resolved.parameter_count = resolved.parameter_count or finished.parameter_count
    resolved.base_config = finished.artifact.base_config or resolved.base_config


def _check_base(name: str, finished: _FinishedJob, base: _AdapterBase) -> None:
    which = f"FineTuneJob {finished.job.name}"
    if finished.artifact.kind not in ("adapter", "both"):
        found = f"Adapter {name}: {which} made a {finished.artifact.kind}, not an adapter"
        remedy = (
            "Serve it as spec.model.fineTuneJob instead of in spec.adapters, or train it with spec.method: lora or "
            "qlora and spec.output.save: adapter or both."
        )
        raise HoneError(ADAPTER_MISMATCH, found, remedy=remedy)
    source = finished.job.spec.model
    if base.source is None or not _is_same_model(base.source, source):
        served = base.description if base.source is None else _describe_source(base.source)
        found = (
            f"Adapter {name}: {which} was trained on {_describe_source(source)}, and the service's model is {served}"
        )
        raise HoneError(ADAPTER_MISMATCH, found)
    trained, served_revision = finished.artifact.base_revision, base.revision
    if not fits_revision(trained, served_revision):
        trained_on = f"{which} was trained on {_describe_source(source)} at {trained}"
        found = f"Adapter {name}: {trained_on}, and {served_revision} is served"
        remedy = (
            f"Train it again with spec.model.revision: {served_revision}, or serve the adapter's own commit: "
            f"spec.model.name with spec.model.revision: {trained}."
        )
        raise HoneError(ADAPTER_MISMATCH, found, remedy=remedy)


def _as_commit(revision: str | None) -> str | None:
    """Return the revision if it is a commit. Only the hub knows the commit of a branch or tag."""
    return revision if is_commit(revision) else None


def _is_same_model(one: BaseModelSource, other: BaseModelSource) -> bool:
    def identity(source: BaseModelSource) -> tuple[str | None, ...]:
        claim = source.claim
        return (
            source.name,
            source.uri,
            source.endpoint,
            claim.name if claim else None,
            (claim.path or "").strip("/") if claim else "",
        )

    return identity(one) == identity(other)


def _describe_source(source: BaseModelSource) -> str:
    claim = source.claim
    return choose_base_model_name(source.name, claim.name if claim else None, claim.path if claim else source.uri)
