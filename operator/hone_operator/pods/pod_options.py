"""Merge the parts of spec.pod that have Kubernetes' names into Hone's pods.

A field that the user leaves out keeps Hone's setting, at the Pod Security level `restricted`. A field that is set
replaces Hone's field of the same name and no other. Next: pod_spec.py, which builds the pod.
"""

from collections.abc import Sequence
from typing import Any

from hone_api.pods.pod_options import PodOptions

from hone_operator.objects.resources import Object

# User and group id of the images' unprivileged user.
USER_ID = 65532

# The settings that the level `restricted` requires of every container.
_RESTRICTED: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def build_pod_security(options: PodOptions, groups: Sequence[int] = ()) -> Object:
    """Return the pod's securityContext. `groups`: the installation's, in addition to the user's supplementalGroups."""
    identity: Object = {"runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID}
    found: Object = {
        "runAsNonRoot": True,
        **(identity if options.user_and_group == "Hone" else {}),
        "fsGroupChangePolicy": "OnRootMismatch",
        "supplementalGroups": list(dict.fromkeys([*options.supplemental_groups, *groups])),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return found | (options.security_context or {})


def build_working_container(container: Object, mounts: list[Object], security: Object, options: PodOptions) -> Object:
    """Return the container of the trainer or the engine, with the user's mounts, variables and security."""
    found = container | {
        "volumeMounts": [*mounts, *options.volume_mounts],
        "securityContext": merge_security(security, options.container_security_context or {}),
    }
    if options.env_from:
        found["envFrom"] = options.env_from
    if options.image_pull_policy:
        found["imagePullPolicy"] = options.image_pull_policy
    return found


def build_init_containers(options: PodOptions) -> list[Object]:
    """Return the user's init containers and sidecars, at the level `restricted` except for their own settings."""
    return [
        one | {"securityContext": merge_security(_RESTRICTED, one.get("securityContext") or {})}
        for one in options.init_containers
    ]


def merge_security(ours: Object, theirs: Object) -> Object:
    """Return a container's securityContext. When the user adds capabilities, all others stay dropped."""
    merged: Object = ours | theirs
    if "capabilities" in theirs:
        merged["capabilities"] = ours["capabilities"] | theirs["capabilities"]
    adds: list[Any] = merged["capabilities"].get("add") or []
    if "allowPrivilegeEscalation" not in theirs and (merged.get("privileged") or "SYS_ADMIN" in adds):
        del merged["allowPrivilegeEscalation"]  # Kubernetes refuses false with either
    return merged


def build_spread_constraints(options: PodOptions, selector: dict[str, str]) -> list[Object]:
    """Return the user's topologySpreadConstraints, with a labelSelector: without one a constraint has no effect."""
    own: Object = {"labelSelector": {"matchLabels": selector}}
    return [own | constraint for constraint in options.topology_spread_constraints]


def add_volume_source(volume: Object) -> Object:
    """Return the volume with the default source of Kubernetes where it has none, so that Hone owns that field."""
    return volume if volume.keys() - {"name"} else volume | {"emptyDir": {}}


def add_pull_policies(pod: Object) -> Object:
    """Return the pod with the default imagePullPolicy for each container's image.

    Kubernetes sets the default only once, so a container with a changed image would keep the policy of the first image.
    """
    lists = {name: pod[name] for name in ("initContainers", "containers") if pod.get(name)}
    found: Object = pod | {
        name: [_get_default_pull_policy(each) | each for each in some] for name, some in lists.items()
    }
    return found


def _get_default_pull_policy(container: Object) -> Object:
    """Return the default: https://kubernetes.io/docs/concepts/containers/images/#imagepullpolicy-defaulting"""
    image = container.get("image")
    if not image:
        return {}
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return {"imagePullPolicy": "Always" if not digest and tag in ("", "latest") else "IfNotPresent"}
