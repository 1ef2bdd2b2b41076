"""Build the parts that trainers' and engines' pods have in common.

In: a container, volumes, and the user's spec.pod. Out: a pod spec at the level `restricted`. Used by
finetunejob/jobs.py and inferenceservice/children.py.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from hone_api.layout import COMPONENT_LABEL, MANAGED_BY_LABEL, MANAGER, POD_CONFIG_MAPS, POD_SECRETS
from hone_api.pods.pod_options import ComputeResources, PodOptions

from hone_operator.objects.resources import Object
from hone_operator.pods import pod_levels, pod_options
from hone_operator.pods.gpu_access import GpuAccess

# The file with the clients' key, in engines that read one.
POD_API_KEY = "/etc/hone/api-key/key"

HELPER_CPU_LIMIT = "1"
# Ephemeral storage of helper containers, where the user's resources name it. HELPER_CPU_LIMIT likewise.
HELPER_STORAGE = "64Mi"

RESERVED_LABEL_PREFIXES = (
    "hone.dev/",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/component",
    "batch.kubernetes.io/",
)


@dataclass(frozen=True)
class Images:
    """The images of trainers and engines, and the installation's settings for their pods.

    `runtime`: the image of trainers and of engine embedded. `level`: the Pod Security level that users' pod settings
    may have.
    """

    runtime: str
    engines: dict[str, str] = field(default_factory=dict)
    gpu_access: GpuAccess = field(default_factory=GpuAccess)
    level: str = pod_levels.RESTRICTED

    def get_engine_image(self, engine: str) -> str | None:
        return self.runtime if engine == "embedded" else self.engines.get(engine)


def make_volume_name(prefix: str, held: str) -> str:
    """Return the name of a volume with the object `held`. It depends on nothing else, such as other volumes."""
    return prefix + hashlib.sha256(held.encode()).hexdigest()[:10]


@dataclass
class Volumes:
    """The volumes of a pod and the mounts of its container. A claim that is mounted twice is one volume."""

    volumes: list[Object] = field(default_factory=list)
    mounts: list[Object] = field(default_factory=list)

    def add_claim(self, claim: str, path: str, *, sub_path: str | None = None, read_only: bool = False) -> None:
        """Mount a claim, or a folder on it, at `path`. A second mount at the same path is left out."""
        if any(mount["mountPath"] == path for mount in self.mounts):
            return
        volume = make_volume_name("claim-", claim)
        if volume not in [known["name"] for known in self.volumes]:
            self.volumes.append({"name": volume, "persistentVolumeClaim": {"claimName": claim}})
        self._add_mount(volume, path, sub_path, read_only)

    def add_config_map(self, volume: str, config_map: str, path: str) -> None:
        self.volumes.append({"name": volume, "configMap": {"name": config_map}})
        self._add_mount(volume, path, None, True)

    def add_empty_dir(self, volume: str, path: str, *, read_only: bool = False, **options: str) -> None:
        self.volumes.append({"name": volume, "emptyDir": dict(options)})
        self._add_mount(volume, path, None, read_only)

    def add_secret(self, volume: str, name: str, key: str, file: str) -> None:
        """Mount one key of a Secret as a file, which the kubelet updates with the Secret."""
        folder, _, base = file.rpartition("/")
        items = [{"key": key, "path": base}]
        self.volumes.append({"name": volume, "secret": {"secretName": name, "items": items, "defaultMode": 0o440}})
        self._add_mount(volume, folder, None, True)

    def add_all_of_secret(self, volume: str, name: str, path: str) -> None:
        """Mount all keys of a Secret as files in a folder."""
        self.volumes.append({"name": volume, "secret": {"secretName": name, "defaultMode": 0o440}})
        self._add_mount(volume, path, None, True)

    def add_inputs(
        self, secrets: Iterable[str], certificates: Iterable[str], *, prefix: str = "", mounted: Collection[str] = ()
    ) -> list[str]:
        """Mount Secrets and ConfigMaps with certificates, each once. Return the arguments with the paths of all.

        prefix: of the volumes' names. mounted: ConfigMaps that the arguments name already.
        """
        arguments: list[str] = []
        for number, name in enumerate(dict.fromkeys(secrets)):
            path = f"{POD_SECRETS}/{name}"
            self.add_all_of_secret(f"{prefix}secret-{number}", name, path)
            arguments += ["--secret", f"{name}={path}"]
        for number, name in enumerate(dict.fromkeys(certificates)):
            if name not in mounted:
                path = f"{POD_CONFIG_MAPS}/{name}"
                self.add_config_map(f"{prefix}certificates-{number}", name, path)
                arguments += ["--config-map", f"{name}={path}"]
        return arguments

    def _add_mount(self, volume: str, path: str, sub_path: str | None, read_only: bool) -> None:
        mount: Object = {"name": volume, "mountPath": path}
        if sub_path:
            mount["subPath"] = sub_path
        if read_only:
            mount["readOnly"] = True
        self.mounts.append(mount)


def add_scratch_volumes(volumes: Volumes, resources: ComputeResources) -> None:
    """Add the writable folders that torch needs with a read-only root file system."""
    volumes.add_empty_dir("tmp", "/tmp")
    volumes.add_empty_dir("shm", "/dev/shm", medium="Memory", sizeLimit=resources.shared_memory)


def build_labels(owner_label: str, owner_name: str, component: str, *of_user: dict[str, str]) -> dict[str, str]:
    """Return the labels of a child and its pods.

    Labels of users can't replace those by which Hone finds its children.
    """
    theirs = {
        name: value for part in of_user for name, value in part.items() if not name.startswith(RESERVED_LABEL_PREFIXES)
    }
    return theirs | {MANAGED_BY_LABEL: MANAGER, COMPONENT_LABEL: component, owner_label: owner_name}


def build_owner_reference(owner: Object) -> Object:
    """Return the owner reference of a child, so that Kubernetes deletes it with its owner."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def build_environment(defaults: dict[str, str], options: PodOptions) -> list[Object]:
    """Return the container's variables. Those of the user override the defaults."""
    merged: dict[str, Object] = {name: {"value": value} for name, value in defaults.items()}
    for variable in options.env:
        by_value: Object = {"value": variable.value}
        merged[variable.name] = by_value if variable.value_from is None else {"valueFrom": variable.value_from}
    return [{"name": name} | source for name, source in merged.items()]


def build_resource_requirements(resources: ComputeResources, gpus: int) -> Object:
    """Return requests and limits. Devices can't be overcommitted, so they are in both."""
    requests: Object = {}
    limits: Object = {}
    if resources.cpu:
        requests["cpu"] = resources.cpu
    if resources.memory:
        requests["memory"] = limits["memory"] = resources.memory
    if gpus:
        requests[resources.gpu_resource] = limits[resources.gpu_resource] = str(gpus)
    return {"requests": requests | resources.requests, "limits": limits | resources.limits}


def build_helper_requirements(helper: ComputeResources, resources: ComputeResources) -> Object:
    """Return requests and limits of a small helper container.

    They name all kinds that the user's resources name, because a quota may require them.
    """
    found = build_resource_requirements(helper, 0)
    if "cpu" in resources.limits:
        found["limits"]["cpu"] = HELPER_CPU_LIMIT
    for kind in ("requests", "limits"):
        if "ephemeral-storage" in resources.requests | resources.limits:
            found[kind]["ephemeral-storage"] = HELPER_STORAGE
    return found


def build_container_security() -> Object:
    """Return the securityContext of Hone's own containers."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def build_pod_spec(
    container: Object,
    volumes: Volumes,
    options: PodOptions,
    *,
    gpus: int,
    gpu_resource: str,
    selector: dict[str, str],
    groups: Sequence[int] = (),
) -> Object:
    """Return a pod spec at the Pod Security level `restricted`, with the user's options.

    `gpus`: the number of GPUs of the work, even if this pod requests none: it may run on nodes with GPUs. `selector`:
    the labels that select pods of this kind. `groups`: further group ids of its processes.
    """
    tolerations: list[Object] = []
    if gpus:
        tolerations = [{"key": key, "operator": "Exists"} for key in dict.fromkeys(("amd.com/gpu", gpu_resource))]
    tolerations += [toleration.to_wire() for toleration in options.tolerations]
    spec: Object = {
        "automountServiceAccountToken": options.automount_service_account_token,
        "enableServiceLinks": False,
        "securityContext": pod_options.build_pod_security(options, groups),
        "initContainers": pod_options.build_init_containers(options),
        "containers": [
            pod_options.build_working_container(container, volumes.mounts, build_container_security(), options)
        ],
        "volumes": [*volumes.volumes, *map(pod_options.add_volume_source, options.volumes)],
        "tolerations": tolerations,
        "nodeSelector": options.node_selector,
        "affinity": options.affinity,
        "topologySpreadConstraints": pod_options.build_spread_constraints(options, selector),
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
