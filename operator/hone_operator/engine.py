"""The children of an InferenceService: the engine's Deployment, and the Service before it."""

from hone_api.inferenceservice import InferenceService
from hone_api.layout import COMPONENT_LABEL, ENGINE_PORT, INFERENCESERVICE_LABEL, MANAGED_BY_LABEL, MANAGER

from hone_operator.podspec import environment, labels, owner_reference, pod_spec, requirements, scratch
from hone_operator.resolve import Resolved
from hone_operator.resources import Object

CONTAINER = "engine"
LONGEST_START_SECONDS = 3600
PROBE_SECONDS = 2


def selector(name: str) -> dict[str, str]:
    """The labels that the engine's pods are found by."""
    return {MANAGED_BY_LABEL: MANAGER, COMPONENT_LABEL: CONTAINER, INFERENCESERVICE_LABEL: name}


def url(owner: Object) -> str:
    """Base URL for OpenAI clients inside the cluster."""
    return f"http://{owner['metadata']['name']}.{owner['metadata']['namespace']}.svc/v1"


def service(owner: Object) -> Object:
    name = owner["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(owner, {}),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(name),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def deployment(owner: Object, declared: InferenceService, resolved: Resolved, image: str) -> Object:
    """A new pod is ready before an old one ends, so a rollout leaves no gap."""
    spec = declared.spec
    options = spec.pod
    metadata = _metadata(owner, options.labels)
    template: Object = {"labels": labels(INFERENCESERVICE_LABEL, declared.name, CONTAINER, options.labels)}
    if options.annotations:
        metadata["annotations"] = template["annotations"] = options.annotations
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": spec.replicas,
            "selector": {"matchLabels": selector(declared.name)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "progressDeadlineSeconds": LONGEST_START_SECONDS,
            "template": {"metadata": template, "spec": _pod(declared, resolved, image)},
        },
    }


def _pod(declared: InferenceService, resolved: Resolved, image: str) -> Object:
    spec = declared.spec
    gpus = spec.resources.gpus
    scratch(resolved.volumes, spec.resources)
    arguments = [*resolved.arguments, "--port", str(ENGINE_PORT)]
    if spec.max_model_len:
        arguments += ["--max-model-len", str(spec.max_model_len)]
    env = {"HOME": "/tmp"} | resolved.env
    if gpus:  # AMD's recommendations for serving
        env |= {"HIP_FORCE_DEV_KERNARG": "1", "SAFETENSORS_FAST_GPU": "1", "TORCH_BLAS_PREFER_HIPBLASLT": "1"}
    if gpus > 1:
        env["NCCL_MIN_NCHANNELS"] = "112"
    container: Object = {
        "name": CONTAINER,
        "image": spec.pod.image or image,
        "command": ["hone-server"],
        "args": arguments,
        "env": environment(env, spec.pod),
        "ports": [{"name": "http", "containerPort": ENGINE_PORT}],
        "resources": requirements(spec.resources, gpus),
        "startupProbe": _probe(PROBE_SECONDS, LONGEST_START_SECONDS // PROBE_SECONDS),
        "readinessProbe": _probe(PROBE_SECONDS, 3),
        "livenessProbe": _probe(10, 6),
        # The engine's error is the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return pod_spec(container, resolved.volumes, spec.pod, gpus=gpus, gpu_resource=spec.resources.gpu_resource)


def _probe(period_seconds: int, failures: int) -> Object:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _metadata(owner: Object, of_user: dict[str, str]) -> Object:
    metadata = owner["metadata"]
    return {
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "labels": labels(INFERENCESERVICE_LABEL, metadata["name"], CONTAINER, of_user),
        "ownerReferences": [owner_reference(owner)],
    }
