"""Remedies that name fields of a service or a claim, each with the state that prints it and the values of a user."""

from typing import Any

from hone_api.inferenceservices.spec import InferenceService
from hone_api.reasons import DISK_FULL, UNSCHEDULABLE, HoneError
from hone_operator.engines import hub_download
from hone_operator.engines.registry import select_engine
from hone_operator.engines.resolve import resolve_models
from hone_operator.engines.root_images import explain_root
from hone_operator.finetunejob import output_claims
from hone_operator.finetunejob.plan import plan_finetunejob
from hone_operator.inferenceservice.compatibility import check_compatibility
from hone_operator.pods.pod_levels import explain_relaxations
from observed import NOW, finished_job, job_object, message, observed_job, parsed_job, service_object
from remedy_states import (
    GIB,
    Field,
    Object,
)


def served(*jobs: Object, gpu: tuple[str, int] | None = None, image: str | None = "i") -> Any:
    """Return the state of a service of these jobs: whether it can be served at all."""

    def state(spec: Object) -> HoneError | None:
        declared = InferenceService.model_validate(service_object(**spec))
        try:
            found = resolve_models(declared.spec, {job["metadata"]["name"]: job for job in jobs})
            check_compatibility(
                select_engine(declared.spec), declared.spec, found, declared.spec.pod.image or image, gpu
            )
        except HoneError as error:
            return error
        return None

    return state


def of_parameters(count: int, **config: Any) -> Object:
    job = finished_job()
    job["status"]["parameters"] = {"trainable": 1, "total": count}
    job["status"]["artifact"]["baseConfig"] = config
    return job


def claim_in_the_way(spec: Object) -> HoneError | None:
    """Return the state of a job whose output's name somebody else's claim has."""
    observed = observed_job(job_object(**spec))
    assert observed.claim
    observed.job, observed.claim["metadata"]["labels"] = None, {}
    found = message(plan_finetunejob(observed, NOW).status, "Accepted")
    sentence, _, remedy = found.partition("of this name. ")
    return HoneError(UNSCHEDULABLE, sentence, remedy=remedy) if remedy else None


def own_claim_of_one_node(spec: Object) -> HoneError | None:
    modes = {"mine": ["ReadWriteOnce"], "shared": ["ReadWriteMany"]}
    job = parsed_job(job_object(**spec))
    assert job.spec.output.claim
    name = job.spec.output.claim.name
    claim = {"metadata": {"name": name, "namespace": "team"}, "spec": {"accessModes": modes[name]}}
    return output_claims.compare_claim(claim, job)


ROOT_IMAGE = "ghcr.io/huggingface/text-generation-inference:3.3.5-rocm"


def above_level(spec: Object, level: str = "restricted") -> HoneError | None:
    """Return the state of a job whose pods may have this level."""
    return explain_relaxations(parsed_job(job_object(**spec)).spec.pod, level)


def root_only(spec: Object, level: str = "restricted") -> HoneError | None:
    """Return the state of a service where the image of engine tgi needs root."""
    declared = InferenceService.model_validate(service_object(**spec)).spec
    return explain_root(declared.pod, ROOT_IMAGE if declared.engine == "tgi" else "vllm:1", level)


def full_cache(spec: Object) -> HoneError | None:
    """Return the state of a service whose download fills the pod's volume, or a small claim."""
    download = resolve_models(InferenceService.model_validate(service_object(**spec)).spec, {}).download
    assert download
    error = HoneError(DISK_FULL, "/cache/hub can't be written: 0 bytes of 1 GiB are free on its volume")
    return None if download.claim == "large" else hub_download.explain_failure(error, download.claim, "team")


ONE: Object = {"resources": {"gpus": 1}}

ADAPTER: Object = {"model": {"fineTuneJob": {"name": "faq"}}}

OTHER: Object = {"name": "other", "fineTuneJob": {"name": "other"}}

ON_BASE: Object = {"model": {"name": "org/base"}, "adapters": [OTHER]}

DORA = finished_job(lora={"useDora": True})

COMMITS = [finished_job(), finished_job("other")]

for _job, _commit in zip(COMMITS, ("a" * 40, "b" * 40), strict=True):
    _job["status"]["artifact"]["baseRevision"] = _commit

OF_SERVICES = [
    Field(
        "no image for the engine",
        served(finished_job(), image=None),
        {"spec.pod.image": "vllm:1"},
        ADAPTER | {"engine": "vllm"},
        "InferenceService",
    ),
    Field("DoRA", served(DORA), {"spec.engine": "embedded"}, ADAPTER | {"engine": "vllm"}, "InferenceService"),
    Field(
        "too few GPUs",
        served(of_parameters(70_000_000_000), gpu=("MI210", 64 * GIB)),
        {"spec.resources.gpus": 4},
        ADAPTER | ONE,
        "InferenceService",
    ),
    Field(
        "too little memory",
        served(of_parameters(7_000_000_000)),
        {"spec.resources.memory": "16Gi"},
        ADAPTER | {"resources": {"gpus": 0, "memory": "8Gi"}},
        "InferenceService",
    ),
    Field(
        "too long",
        served(of_parameters(7_000_000_000, cacheBytesPerToken=1 << 20), gpu=("MI210", 64 * GIB)),
        {"spec.maxModelLen": 4096},
        ADAPTER | ONE | {"maxModelLen": 1 << 20},
        "InferenceService",
    ),
    Field(
        "two of a name",
        served(finished_job(), finished_job("other")),
        {"spec.adapters[0].name": "another"},
        ADAPTER | {"adapters": [OTHER | {"name": "faq"}]},
        "InferenceService",
    ),
    Field(
        "no adapter",
        served(finished_job("other", "merged")),
        {"spec.model": {"fineTuneJob": {"name": "other"}}, "spec.adapters": []},
        ON_BASE,
        "InferenceService",
    ),
    Field(
        "another commit",
        served(*COMMITS),
        {"spec.model.revision": "b" * 40},
        {"model": {"name": "org/base", "revision": "a" * 40}, "adapters": [OTHER]},
        "InferenceService",
    ),
]

OF_LEVELS = [
    Field("the node's network", above_level, {"spec.pod.hostNetwork": False}, {"pod": {"hostNetwork": True}}),
    *(
        Field(f"an image of root: {field}", root_only, {field: value}, ADAPTER | {"engine": "tgi"}, "InferenceService")
        for field, value in (("spec.engine", "vllm"), ("spec.pod.securityContext.runAsUser", 1000))
    ),
]

OF_CLAIMS = [
    Field("somebody else's claim", claim_in_the_way, {"spec.output.claim.name": "faq"}, {}),
    *(
        Field(
            f"a claim of one node for two: {field}",
            own_claim_of_one_node,
            {field: value},
            {"resources": {"gpus": 1, "nodes": 2}, "output": {"claim": {"name": "mine"}}},
        )
        for field, value in (("spec.output.claim.name", "shared"), ("spec.resources.nodes", 1))
    ),
]

PRIVATE: Object = {"model": {"name": "org/base"}, "tokenSecret": {"name": "hub"}}

OF_DOWNLOADS = [
    Field(
        "a full disk",
        full_cache,
        {"spec.cache.claim": {"name": "large"}},
        PRIVATE,
        "InferenceService",
    ),
]

FIELDS = [*OF_DOWNLOADS, *OF_SERVICES, *OF_LEVELS, *OF_CLAIMS]
