"""Download a model from the hub in an init container, so that the engine has neither the token nor a need for it.

Used where the spec names a token or a cache; without both, engines download as they do anywhere. In: the resolved
models. Out: the container, the engine's variables, and explanations of failures. It runs
hone_trainer.inputs.model_download.
"""

from hone_api.containers import MODEL_DOWNLOAD, build_module_command
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import POD_CACHE
from hone_api.reasons import DISK_FULL, VOLUME_ACCESS_DENIED, HoneError

from hone_operator.diagnosis.pod_state import get_container_status
from hone_operator.engines.resolve import ResolvedModels
from hone_operator.engines.uri_download import CONTAINER as URI_CONTAINER
from hone_operator.objects.resources import Object
from hone_operator.pods.hub_token import add_token
from hone_operator.pods.pod_spec import (
    build_container_security,
    build_environment,
    build_resource_requirements,
)

CONTAINER = "download"
# Variables of users that would lead the download elsewhere than the engine looks.
_CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")


def build_download_containers(spec: InferenceServiceSpec, resolved: ResolvedModels, image: str) -> list[Object]:
    """Return the init container, if a model is to be downloaded.

    It has the user's variables and mounts (a mirror, a proxy, certificates), and may use as much memory as the engine,
    which starts later. What the engine only reads, it writes.
    """
    download = resolved.download
    if download is None:
        return []
    environment = build_environment({"HOME": "/tmp", "USER": "hone", "HF_HUB_DISABLE_TELEMETRY": "1"}, spec.pod)
    variables = [variable for variable in environment if variable["name"] not in _CACHE_VARIABLES]
    variables += [{"name": "HF_HOME", "value": POD_CACHE}, {"name": "HF_HUB_CACHE", "value": f"{POD_CACHE}/hub"}]
    arguments = [download.name, "--link", download.link]
    if download.revision:
        arguments += ["--revision", download.revision]
    written = {POD_CACHE, download.link.rpartition("/")[0]}
    mounts = [
        {name: value for name, value in mount.items() if name != "readOnly"}
        for mount in resolved.volumes.mounts
        if mount["mountPath"] in written
    ]
    container: Object = {
        "name": CONTAINER,
        "image": image,
        "command": build_module_command(MODEL_DOWNLOAD),
        "args": arguments,
        "env": add_token(variables, spec.token_secret),
        "resources": build_resource_requirements(spec.resources, 0),
        "volumeMounts": [*mounts, {"name": "tmp", "mountPath": "/tmp"}, *spec.pod.volume_mounts],
        "securityContext": build_container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return [container | ({"envFrom": spec.pod.env_from} if spec.pod.env_from else {})]


def describe_running(pods: list[Object]) -> str:
    """Return a sentence about a pod that downloads now; an empty text without one."""
    for pod in pods:
        for container in (CONTAINER, URI_CONTAINER):
            if "running" in (get_container_status(pod, container).get("state") or {}):
                name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
                log = f"kubectl logs {name} --namespace {namespace} --container {container}"
                return f" Pod {name} downloads the model; how far it is: {log}"
    return ""


def explain_failure(error: HoneError, claim: str | None, namespace: str) -> HoneError:
    """Return a failure of a download with the volume of the cache, where that is full or closed."""
    if error.reason is DISK_FULL and claim is None:
        remedy = "Set spec.cache.claim to a claim with room for the model."
        return HoneError(DISK_FULL, f"{error.message}; {POD_CACHE} is on the disk of the pod's node", remedy=remedy)
    message = f"{error.message}; {POD_CACHE} is PersistentVolumeClaim {claim}"
    if error.reason is DISK_FULL:
        remedy = (
            "Remove models that nobody needs from it, or enlarge it with "
            f"`kubectl patch pvc {claim} --namespace {namespace} --patch "
            '\'{"spec": {"resources": {"requests": {"storage": "SIZE"}}}}\'` where its StorageClass has '
            "allowVolumeExpansion: true; the next start downloads what is missing."
        )
        return HoneError(DISK_FULL, message, remedy=remedy)
    if error.reason is VOLUME_ACCESS_DENIED and claim:
        return HoneError(VOLUME_ACCESS_DENIED, message)
    return error
