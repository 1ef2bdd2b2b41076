"""Environment variables that tune pods for AMD GPUs: AMD's recommendations, and the folders of compiled kernels.

In: the resources of a trainer or an engine, and the nodes that its pod may get. Out: variables, which `spec.pod.env`
can override. Next in the flow: jobs.py and inferenceservice/children.py, which put them into their pods.
"""

from hone_api.finetunejobs.spec import TrainerResources
from hone_api.inferenceservices.spec import EngineResources

from hone_operator.diagnosis.gpus import are_unpartitioned
from hone_operator.diagnosis.nodes import ClusterNodes

TRAINING_VARIABLES = {"GPU_MAX_HW_QUEUES": "2", "HSA_ENABLE_SDMA": "1"}
SERVING_VARIABLES = {"HIP_FORCE_DEV_KERNARG": "1", "SAFETENSORS_FAST_GPU": "1", "TORCH_BLAS_PREFER_HIPBLASLT": "1"}

# For training on several GPUs: communication has priority over computation that would delay it.
MULTI_GPU_VARIABLES = {"TORCH_NCCL_HIGH_PRIORITY": "1"}

MORE_CHANNELS_VARIABLES = {"NCCL_MIN_NCHANNELS": "112"}
# The GPUs for which AMD recommends MORE_CHANNELS_VARIABLES: the MI300 class with 304 compute units. Each channel
# occupies one; others have fewer (MI210: 104, MI308X: 80), and for eight MI350X RCCL chooses 112 itself since ROCm 7.0.
MORE_CHANNELS_GPUS = frozenset({"MI300X", "MI325X"})

CACHE_FOLDER = "/tmp/kernels"
# Folders of the pod's `/tmp`, which the libraries create: the image's own may not be writable for the pod's user.
# AITER_JIT_DIR is left out: where it is set, AITER ignores the kernels of the image and compiles them again.
COMPILE_CACHE_VARIABLES = {
    "TRITON_CACHE_DIR": f"{CACHE_FOLDER}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE_FOLDER}/inductor",
    "MIOPEN_USER_DB_PATH": f"{CACHE_FOLDER}/miopen",
    "MIOPEN_CUSTOM_CACHE_DIR": f"{CACHE_FOLDER}/miopen",
}
VLLM_CACHE_VARIABLES = {"VLLM_CACHE_ROOT": f"{CACHE_FOLDER}/vllm"}


def depends_on_nodes(resources: TrainerResources) -> bool:
    """Return whether RCCL's channels depend on the nodes' GPUs. A job on several nodes is limited by the network."""
    return resources.gpus > 1 and resources.nodes == 1


def needs_more_channels(
    resources: TrainerResources | EngineResources, selector: dict[str, str], cluster: ClusterNodes | None
) -> bool:
    """Return whether a pod gets MORE_CHANNELS_VARIABLES: every GPU that it may get is of MORE_CHANNELS_GPUS.

    `selector`: the pod's node selector. Where the nodes or their labels are unknown, RCCL chooses.
    """
    if cluster is None or resources.gpus < 2:
        return False
    return are_unpartitioned(cluster.nodes, resources.gpu_resource, selector, MORE_CHANNELS_GPUS)


def build_training_environment(resources: TrainerResources, *, more_channels: bool) -> dict[str, str]:
    """Return the variables of a trainer."""
    found: dict[str, str] = {}
    if resources.gpus:
        found |= TRAINING_VARIABLES | COMPILE_CACHE_VARIABLES
    if resources.gpus > 1 or resources.nodes > 1:
        found |= MULTI_GPU_VARIABLES
    return found | (MORE_CHANNELS_VARIABLES if more_channels and depends_on_nodes(resources) else {})


def build_serving_environment(resources: EngineResources, *, more_channels: bool) -> dict[str, str]:
    """Return the variables of an engine."""
    if not resources.gpus:
        return {}
    return SERVING_VARIABLES | COMPILE_CACHE_VARIABLES | (MORE_CHANNELS_VARIABLES if more_channels else {})
