"""What the trainer's and the engine's pods have in common."""

import hashlib
from dataclasses import dataclass, field

from hone_api.common import ComputeResources, PodOptions
from hone_api.layout import COMPONENT_LABEL, MANAGED_BY_LABEL, MANAGER

from hone_operator.resources import Object

USER = 65532
"""User and group id of the images' unprivileged user."""

POD_API_KEY = "/etc/hone/api-key/key"
"""The file with the clients' key, in engines that read one."""

RESERVED_LABEL_PREFIXES = ("hone.dev/", "app.kubernetes.io/managed-by", "app.kubernetes.io/component")


@dataclass(frozen=True)
class Images:
    """The runtime image of trainers and embedded engines, and those of the other engines by name."""

    runtime: str
    engines: dict[str, str] = field(default_factory=dict)

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
    merged = defaults | {variable.name: variable.value for variable in options.env}
    return [{"name": name, "value": value} for name, value in merged.items()]


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
    return {"requests": requests, "limits": limits}


def container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def pod_spec(container: Object, volumes: Volumes, options: PodOptions, *, gpus: int, gpu_resource: str) -> Object:
    """A pod at the `restricted` Pod Security level, with the user's options; scheduling is left to the cluster.

    `gpus` is that of the work, whether or not this pod asks for them: it is allowed on the nodes that have them.
    """
    tolerations: list[Object] = []
    if gpus:
        tolerations = [{"key": key, "operator": "Exists"} for key in dict.fromkeys(("amd.com/gpu", gpu_resource))]
    tolerations += [toleration.to_wire() for toleration in options.tolerations]
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "supplementalGroups": options.supplemental_groups,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container | {"volumeMounts": volumes.mounts, "securityContext": container_security()}],
        "volumes": volumes.volumes,
        "tolerations": tolerations,
        "nodeSelector": options.node_selector,
        "affinity": options.affinity,
        "priorityClassName": options.priority_class_name,
        "imagePullSecrets": [secret.to_wire() for secret in options.image_pull_secrets],
        "serviceAccountName": options.service_account_name,
        "schedulerName": options.scheduler_name,
    }
    return {name: value for name, value in spec.items() if value not in (None, [], {})}
