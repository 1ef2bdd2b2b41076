"""Find the Hone object that owns a child: by its controller reference, or by labels where it has none. Pure."""

from hone_api.layout import FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL

from hone_operator.objects.resources import (
    CHILDREN,
    FINETUNEJOBS,
    INFERENCESERVICES,
    OWNERS,
    PODS,
    Key,
    Object,
    Resource,
    find_controller,
)

OWNER_LABELS = ((FINETUNEJOB_LABEL, FINETUNEJOBS, "Job"), (INFERENCESERVICE_LABEL, INFERENCESERVICES, "ReplicaSet"))


def find_owner_key(resource: Resource, child: Object) -> Key | None:
    """Return the Hone object that owns a child; None without one. Labels on other kinds belong to users."""
    if resource not in CHILDREN:
        return None
    metadata = child["metadata"]
    namespace, labels = metadata.get("namespace", ""), metadata.get("labels") or {}
    controller = find_controller(child) or {}
    for owner in OWNERS:
        if (controller.get("apiVersion"), controller.get("kind")) == (owner.api_version, owner.kind):
            return Key(owner, namespace, controller["name"])
    for label, owner, maker in OWNER_LABELS:
        if resource == PODS and controller and controller.get("kind") != maker:
            continue
        if name := labels.get(label):
            return Key(owner, namespace, name)
    return None
