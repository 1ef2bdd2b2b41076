"""What the Deployment of Hone's operator shows of an installation. Pure."""

from collections.abc import Iterable

from hone.objects.views import Object

# Variables of the operator, and the chart's values that they come from.
IMAGES = {
    "HONE_RUNTIME_IMAGE": "runtime.image",
    "HONE_VLLM_IMAGE": "runtime.vllmImage",
    "HONE_SGLANG_IMAGE": "runtime.sglangImage",
    "HONE_TGI_IMAGE": "runtime.tgiImage",
}
LABEL = "app.kubernetes.io/name=hone"


def find_images(operators: Iterable[Object]) -> dict[str, str]:
    """Return the default images by their chart value, as the first operator has them."""
    for deployment in operators:
        environment = {
            each.get("name"): each.get("value") or "" for each in find_container(deployment).get("env") or []
        }
        return {value: environment[name] for name, value in IMAGES.items() if environment.get(name)}
    return {}


def find_gpu_groups(operators: Iterable[Object]) -> tuple[int, ...]:
    """Return the groups that pods with GPUs get from the chart value runtime.supplementalGroups."""
    for deployment in operators:
        environment = {
            each.get("name"): each.get("value") or "" for each in find_container(deployment).get("env") or []
        }
        return tuple(int(each) for each in environment.get("HONE_GPU_GROUPS", "").split(",") if each.strip().isdigit())
    return ()


def find_container(deployment: Object) -> Object:
    """Return the operator's container; empty when there is none."""
    template = ((deployment.get("spec") or {}).get("template") or {}).get("spec") or {}
    containers = template.get("containers") or [{}]
    found: Object = next((each for each in containers if each.get("name") == "operator"), containers[0])
    return found
