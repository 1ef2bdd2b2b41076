"""The key guard: a sidecar in front of engines whose own check of the API key leaves routes open.

Only the sidecar is reachable from outside the pod. It runs hone_server.key_guard.
"""

from hone_api.containers import KEY_GUARD, build_module_command
from hone_api.inferenceservices.spec import InferenceServiceSpec

from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import POD_API_KEY, build_container_security

CONTAINER = "guard"


def build_guard_container(
    spec: InferenceServiceSpec, routes: tuple[str, ...], image: str, resources: Object, mounts: list[Object]
) -> Object:
    """Return the native sidecar, which starts before the engine and runs as long as it."""
    arguments = ["--api-key-file", POD_API_KEY] if spec.api_key_secret else []
    for route in routes:
        arguments += ["--route", route]
    return {
        "name": CONTAINER,
        "restartPolicy": "Always",
        "image": image,
        "command": build_module_command(KEY_GUARD),
        "args": arguments,
        "resources": resources,
        "volumeMounts": mounts,
        "securityContext": build_container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
