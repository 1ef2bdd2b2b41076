"""Environment variables that tune pods for AMD GPUs: AMD's recommendations, and the folders of compiled kernels.

In: the resources of a trainer or an engine, and the nodes that its pod may get. Out: variables, which `spec.pod.env`
can override. Next in the flow: jobs.py and inferenceservice/children.py, which put them into their pods.
"""

from hone_api.finetunejobs.spec import TrainerResources
from hone_api.inferenceservices.spec import EngineResources

from hone_operator.diagnosis.gpus import are_whole
from hone_operator.diagnosis.nodes import ClusterFacts

TRAINING = {"GPU_MAX_HW_QUEUES": "2", "HSA_ENABLE_SDMA": "1"}
SERVING = {"HIP_FORCE_DEV_KERNARG": "1", "SAFETENSORS_FAST_GPU": "1", "TORCH_BLAS_PREFER_HIPBLASLT": "1"}

# For training on several GPUs: communication has priority over computation that would delay it.
SEVERAL_PROCESSES = {"TORCH_NCCL_HIGH_PRIORITY": "1"}

MORE_CHANNELS = {"NCCL_MIN_NCHANNELS": "112"}
# The GPUs for which AMD recommends MORE_CHANNELS: the MI300 class with 304 compute units. Each channel occupies one;
# others have fewer (MI210: 104, MI308X: 80), and for eight MI350X RCCL chooses 112 itself since ROCm 7.0.
WITH_MORE_CHANNELS = frozenset({"MI300X", "MI325X"})

CACHES = "/tmp/kernels"
# Folders of the pod's `/tmp`, which the libraries create: the image's own may not be writable for the pod's user.
# AITER_JIT_DIR is left out: where it is set, AITER ignores the kernels of the image and compiles them again.
COMPILE_CACHES = {
    "TRITON_CACHE_DIR": f"{CACHES}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHES}/inductor",
    "MIOPEN_USER_DB_PATH": f"{CACHES}/miopen",
    "MIOPEN_CUSTOM_CACHE_DIR": f"{CACHES}/miopen",
}
VLLM_CACHE = {"VLLM_CACHE_ROOT": f"{CACHES}/vllm"}


def depends_on_nodes(resources: TrainerResources) -> bool:
    """Return whether RCCL's channels depend on the nodes' GPUs. A job on several nodes is limited by the network."""
    return resources.gpus > 1 and resources.nodes == 1


def needs_channels(
    resources: TrainerResources | EngineResources, selector: dict[str, str], facts: ClusterFacts | None
) -> bool:
    """Return whether a pod gets MORE_CHANNELS: every GPU that it may get is of WITH_MORE_CHANNELS.

    `selector`: the pod's node selector. Where the nodes or their labels are unknown, RCCL chooses.
    """
    if facts is None or resources.gpus < 2:
        return False
    return are_whole(facts.nodes, resources.gpu_resource, selector, WITH_MORE_CHANNELS)


def training_environment(resources: TrainerResources, *, more_channels: bool) -> dict[str, str]:
    """Return the variables of a trainer."""
    found: dict[str, str] = {}
    if resources.gpus:
        found |= TRAINING | COMPILE_CACHES
    if resources.gpus > 1 or resources.nodes > 1:
        found |= SEVERAL_PROCESSES
    return found | (MORE_CHANNELS if more_channels and depends_on_nodes(resources) else {})


def serving_environment(resources: EngineResources, *, more_channels: bool) -> dict[str, str]:
    """Return the variables of an engine."""
    if not resources.gpus:
        return {}
    return SERVING | COMPILE_CACHES | (MORE_CHANNELS if more_channels else {})
