"""The kinds of Kubernetes objects that the operator reads and writes."""

from dataclasses import dataclass
from typing import Any

from hone_api.common import API_VERSION

# A Kubernetes object as JSON.
Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind of object, with its API version and the plural for its URL."""

    api_version: str
    kind: str
    plural: str

    def build_path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the URL path of the collection, of one object, or of its subresource."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        parts = [root, f"namespaces/{namespace}" if namespace else "", self.plural, name, subresource]
        return "/".join(part for part in parts if part)


FINETUNEJOBS = Resource(API_VERSION, "FineTuneJob", "finetunejobs")
INFERENCESERVICES = Resource(API_VERSION, "InferenceService", "inferenceservices")
JOBS = Resource("batch/v1", "Job", "jobs")
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments")
PODS = Resource("v1", "Pod", "pods")
SERVICES = Resource("v1", "Service", "services")
CONFIGMAPS = Resource("v1", "ConfigMap", "configmaps")
CLAIMS = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
BUDGETS = Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
AUTOSCALERS = Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
EVENTS = Resource("v1", "Event", "events")
NODES = Resource("v1", "Node", "nodes")
LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")
DEVICE_CLASSES = Resource("resource.k8s.io/v1", "DeviceClass", "deviceclasses")

OWNERS = (FINETUNEJOBS, INFERENCESERVICES)
# The kinds of children, which are watched by label.
CHILDREN = (JOBS, DEPLOYMENTS, PODS, SERVICES, CONFIGMAPS, CLAIMS, BUDGETS, AUTOSCALERS)
WATCHED = (*OWNERS, *CHILDREN)

# The stages of a FineTuneJob that has its result. It may still be pushed.
TERMINAL_STAGES = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Key:
    """One FineTuneJob or InferenceService."""

    resource: Resource
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.resource.kind} {self.namespace}/{self.name}"


def is_terminal(owner: Object) -> bool:
    """Return whether a FineTuneJob has its result, which never changes."""
    return (owner.get("status") or {}).get("stage") in TERMINAL_STAGES


def has_ended(owner: Object) -> bool:
    """Return whether nothing more is done for a FineTuneJob: it has its result, which is pushed where that is asked."""
    return is_terminal(owner) and not awaits_push(owner)


def awaits_push(owner: Object) -> bool:
    """Return whether the artifact of a FineTuneJob is complete, and not at all destinations of its spec."""
    if (owner.get("status") or {}).get("stage") != "Succeeded":
        return False
    output = (owner.get("spec") or {}).get("output") or {}
    is_pushed = (find_condition(owner, "Pushed") or {}).get("status") == "True"
    return bool(output.get("push")) and not is_pushed


def has_observed_status(owner: Object) -> bool:
    """Return whether a pass has written the status: before that it is the default of the CustomResourceDefinition."""
    return int((owner.get("status") or {}).get("observedGeneration") or -1) >= 0


def is_controlled_by(child: Object, owner: Object) -> bool:
    """Return whether the child's controller is exactly this owner."""
    reference = find_controller(child)
    return reference is not None and reference["uid"] == owner["metadata"]["uid"]


def find_controller(child: Object) -> Object | None:
    """Return the owner reference with `controller: true`; None without one."""
    references = child["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), None)


def find_condition(body: Object, type_: str) -> Object | None:
    """Return the object's condition of this type, with any status; None without one."""
    return next((c for c in (body.get("status") or {}).get("conditions") or [] if c["type"] == type_), None)


def build_merge_patch(old: Object, new: Object) -> Object:
    """Return the JSON merge patch (RFC 7386) that turns `old` into `new`."""
    patch: Object = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            if changes := build_merge_patch(before, value):
                patch[name] = changes
        elif before != value:
            patch[name] = value
    return patch
