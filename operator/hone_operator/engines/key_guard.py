"""A sidecar in front of engines whose own check of the key leaves routes open: it alone is reachable from outside."""

from hone_api.inferenceservices.spec import InferenceServiceSpec

from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import POD_API_KEY, container_security

CONTAINER = "guard"


def container(
    spec: InferenceServiceSpec, routes: tuple[str, ...], image: str, resources: Object, mounts: list[Object]
) -> Object:
    """Return the native sidecar, which runs before the engine starts, and as long as the engine."""
    arguments = ["--api-key-file", POD_API_KEY] if spec.api_key_secret else []
    for route in routes:
        arguments += ["--route", route]
    return {
        "name": CONTAINER,
        "restartPolicy": "Always",
        "image": image,
        "command": ["python3", "-m", "hone_server.key_guard"],
        "args": arguments,
        "resources": resources,
        "volumeMounts": mounts,
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
