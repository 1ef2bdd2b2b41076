"""What the trainer's and the engine's pods have in common."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from hone_api.layout import COMPONENT_LABEL, MANAGED_BY_LABEL, MANAGER
from hone_api.pods.pod_options import ComputeResources, PodOptions

from hone_operator.objects.resources import Object
from hone_operator.pods import pod_levels, pod_options
from hone_operator.pods.gpu_access import GpuAccess

# The file with the clients' key, in engines that read one.
POD_API_KEY = "/etc/hone/api-key/key"

HELPER_CPU_LIMIT = "1"
# What a container that checks or keeps adapters may use, where the user's resources name the kind.
HELPER_STORAGE = "64Mi"

RESERVED_LABEL_PREFIXES = (
    "hone.dev/",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/component",
    "batch.kubernetes.io/",
)


@dataclass(frozen=True)
class Images:
    """The runtime image of trainers and embedded engines, those of the other engines, and how all reach GPUs.

    `level`: the Pod Security level that users' settings of pods may have.
    """

    runtime: str
    engines: dict[str, str] = field(default_factory=dict)
    gpu_access: GpuAccess = field(default_factory=GpuAccess)
    level: str = pod_levels.RESTRICTED

    def of(self, engine: str) -> str | None:
        return self.runtime if engine == "embedded" else self.engines.get(engine)


@dataclass
class Volumes:
    """The pod's volumes and the container's mounts; a claim that is mounted twice is one volume."""

    volumes: list[Object] = field(default_factory=list)
    mounts: list[Object] = field(default_factory=list)

    def claim(self, claim: str, path: str, *, sub_path: str | None = None, read_only: bool = False) -> None:
        """Mount a claim, or a folder on it, at `path`; a second mount at the same path is left out."""
        if any(mount["mountPath"] == path for mount in self.mounts):
            return
        # Named by the claim alone, so that another claim that comes or goes changes nothing about this one.
        volume = f"claim-{hashlib.sha256(claim.encode()).hexdigest()[:10]}"
        if volume not in [known["name"] for known in self.volumes]:
            self.volumes.append({"name": volume, "persistentVolumeClaim": {"claimName": claim}})
        self._mount(volume, path, sub_path, read_only)

    def config_map(self, volume: str, config_map: str, path: str) -> None:
        self.volumes.append({"name": volume, "configMap": {"name": config_map}})
        self._mount(volume, path, None, True)

    def empty_dir(self, volume: str, path: str, **options: str) -> None:
        self.volumes.append({"name": volume, "emptyDir": dict(options)})
        self._mount(volume, path, None, False)

    def secret(self, volume: str, name: str, key: str, file: str) -> None:
        """One key of a Secret as a file, which is renewed when the Secret is."""
        folder, _, base = file.rpartition("/")
        items = [{"key": key, "path": base}]
        self.volumes.append({"name": volume, "secret": {"secretName": name, "items": items, "defaultMode": 0o440}})
        self._mount(volume, folder, None, True)

    def _mount(self, volume: str, path: str, sub_path: str | None, read_only: bool) -> None:
        mount: Object = {"name": volume, "mountPath": path}
        if sub_path:
            mount["subPath"] = sub_path
        if read_only:
            mount["readOnly"] = True
        self.mounts.append(mount)


def scratch(volumes: Volumes, resources: ComputeResources) -> None:
    """The places that torch writes to beside a read-only root."""
    volumes.empty_dir("tmp", "/tmp")
    volumes.empty_dir("shm", "/dev/shm", medium="Memory", sizeLimit=resources.shared_memory)


def labels(owner_label: str, owner_name: str, component: str, *of_user: dict[str, str]) -> dict[str, str]:
    """Labels of a child and its pods; the user's can't displace those that Hone finds its children by."""
    theirs = {
        name: value for part in of_user for name, value in part.items() if not name.startswith(RESERVED_LABEL_PREFIXES)
    }
    return theirs | {MANAGED_BY_LABEL: MANAGER, COMPONENT_LABEL: component, owner_label: owner_name}


def owner_reference(owner: Object) -> Object:
    """So that deleting the owner deletes the child."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def environment(defaults: dict[str, str], options: PodOptions) -> list[Object]:
    """The container's variables; the user's win."""
    merged: dict[str, Object] = {name: {"value": value} for name, value in defaults.items()}
    for variable in options.env:
        by_value: Object = {"value": variable.value}
        merged[variable.name] = by_value if variable.value_from is None else {"valueFrom": variable.value_from}
    return [{"name": name} | source for name, source in merged.items()]


def requirements(resources: ComputeResources, gpus: int) -> Object:
    """Requests and limits; devices can't be overcommitted, so they are both."""
    requests: Object = {}
    limits: Object = {}
    if resources.cpu:
        requests["cpu"] = resources.cpu
    if resources.memory:
        requests["memory"] = limits["memory"] = resources.memory
    if gpus:
        requests[resources.gpu_resource] = limits[resources.gpu_resource] = str(gpus)
    return {"requests": requests | resources.requests, "limits": limits | resources.limits}


def helper_requirements(helper: ComputeResources, resources: ComputeResources) -> Object:
    """Those of a small container of Hone's, which names what the user's resources name: a quota may ask for it."""
    found = requirements(helper, 0)
    if "cpu" in resources.limits:
        found["limits"]["cpu"] = HELPER_CPU_LIMIT
    for kind in ("requests", "limits"):
        if "ephemeral-storage" in resources.requests | resources.limits:
            found[kind]["ephemeral-storage"] = HELPER_STORAGE
    return found


def container_security() -> Object:
    """Of Hone's own containers."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def pod_spec(
    container: Object,
    volumes: Volumes,
    options: PodOptions,
    *,
    gpus: int,
    gpu_resource: str,
    selector: dict[str, str],
    groups: Sequence[int] = (),
) -> Object:
    """A pod at the `restricted` Pod Security level, with the user's options; scheduling is left to the cluster.

    `gpus` is that of the work, whether or not this pod asks for them: it is allowed on the nodes that have them.
    `selector`: the labels that the pods of this kind are found by. `groups`: further group ids of its processes.
    """
    tolerations: list[Object] = []
    if gpus:
        tolerations = [{"key": key, "operator": "Exists"} for key in dict.fromkeys(("amd.com/gpu", gpu_resource))]
    tolerations += [toleration.to_wire() for toleration in options.tolerations]
    spec: Object = {
        "automountServiceAccountToken": options.automount_service_account_token,
        "enableServiceLinks": False,
        "securityContext": pod_options.pod_security(options, groups),
        "initContainers": pod_options.init_containers(options),
        "containers": [pod_options.working_container(container, volumes.mounts, container_security(), options)],
        "volumes": [*volumes.volumes, *map(pod_options.with_source, options.volumes)],
        "tolerations": tolerations,
        "nodeSelector": options.node_selector,
        "affinity": options.affinity,
        "topologySpreadConstraints": pod_options.spread(options, selector),
        "priorityClassName": options.priority_class_name,
        "imagePullSecrets": [secret.to_wire() for secret in options.image_pull_secrets],
        "serviceAccountName": options.service_account_name,
        "schedulerName": options.scheduler_name,
        "runtimeClassName": options.runtime_class_name,
        "hostNetwork": options.host_network or None,
        "dnsPolicy": options.dns_policy or ("ClusterFirstWithHostNet" if options.host_network else None),
        "dnsConfig": options.dns_config,
        "hostAliases": options.host_aliases,
        "shareProcessNamespace": options.share_process_namespace or None,
    }
    return {name: value for name, value in spec.items() if value not in (None, [], {})}
