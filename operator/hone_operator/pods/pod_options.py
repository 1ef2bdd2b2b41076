"""Merges the parts of spec.pod that have Kubernetes' names onto what Hone makes; `pod_spec` puts them together.

What is left out keeps Hone's setting, which is the `restricted` Pod Security level. A field that is set replaces Hone's
field of the same name and no other.
"""

from collections.abc import Sequence
from typing import Any

from hone_api.pods.pod_options import PodOptions

from hone_operator.objects.resources import Object

# User and group id of the images' unprivileged user.
USER = 65532

# What the level `restricted` wants of every container.
_RESTRICTED: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def pod_security(options: PodOptions, groups: Sequence[int] = ()) -> Object:
    """The pod's securityContext. `groups` are the installation's, in addition to the user's supplementalGroups."""
    identity: Object = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    found: Object = {
        "runAsNonRoot": True,
        **(identity if options.user_and_group == "Hone" else {}),
        "fsGroupChangePolicy": "OnRootMismatch",
        "supplementalGroups": list(dict.fromkeys([*options.supplemental_groups, *groups])),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return found | (options.security_context or {})


def working_container(container: Object, mounts: list[Object], security: Object, options: PodOptions) -> Object:
    """The container of the trainer or the engine, with the user's mounts, variables and security."""
    found = container | {
        "volumeMounts": [*mounts, *options.volume_mounts],
        "securityContext": merge_security(security, options.container_security_context or {}),
    }
    if options.env_from:
        found["envFrom"] = options.env_from
    if options.image_pull_policy:
        found["imagePullPolicy"] = options.image_pull_policy
    return found


def init_containers(options: PodOptions) -> list[Object]:
    """The user's init containers and sidecars, at the level `restricted` but for what they set."""
    return [
        one | {"securityContext": merge_security(_RESTRICTED, one.get("securityContext") or {})}
        for one in options.init_containers
    ]


def merge_security(ours: Object, theirs: Object) -> Object:
    """Return a container's securityContext; capabilities that the user adds leave the others dropped."""
    merged: Object = ours | theirs
    if "capabilities" in theirs:
        merged["capabilities"] = ours["capabilities"] | theirs["capabilities"]
    adds: list[Any] = merged["capabilities"].get("add") or []
    if "allowPrivilegeEscalation" not in theirs and (merged.get("privileged") or "SYS_ADMIN" in adds):
        del merged["allowPrivilegeEscalation"]  # Kubernetes refuses false with either
    return merged


def spread(options: PodOptions, selector: dict[str, str]) -> list[Object]:
    """The user's topologySpreadConstraints. Without a labelSelector one would count no pod, and do nothing."""
    own: Object = {"labelSelector": {"matchLabels": selector}}
    return [own | constraint for constraint in options.topology_spread_constraints]


def with_source(volume: Object) -> Object:
    """Return the volume with the source that Kubernetes gives one that has none, so that it is Hone's to change."""
    return volume if volume.keys() - {"name"} else volume | {"emptyDir": {}}


def with_pull_policies(pod: Object) -> Object:
    """Return the pod with the imagePullPolicy of each container that Kubernetes would give a new one for its image.

    It gives it once, so that with another image the container would keep the policy of the first.
    """
    lists = {name: pod[name] for name in ("initContainers", "containers") if pod.get(name)}
    found: Object = pod | {name: [_pull_policy(each) | each for each in some] for name, some in lists.items()}
    return found


def _pull_policy(container: Object) -> Object:
    """https://kubernetes.io/docs/concepts/containers/images/#imagepullpolicy-defaulting"""
    image = container.get("image")
    if not image:
        return {}
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return {"imagePullPolicy": "Always" if not digest and tag in ("", "latest") else "IfNotPresent"}
