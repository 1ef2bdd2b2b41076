"""The users' settings for Hone's pods: resources, and parts of a pod's spec, with Kubernetes' names.

Values with a type of Kubernetes' own are plain data here: their schema comes from `pod_schema`. The rules refuse
settings that would break a promise of Hone, such as a mount over the artifact. The operator's `pod_spec` merges the
other settings into its own pods.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from hone_api.common import (
    ApiModel,
    Label,
    LocalSecretReference,
    ObjectName,
    Quantity,
    ResourceName,
    declare_list_key,
    declare_rules,
    make_rule,
)
from hone_api.layout import ADMIN_TOKEN_FILE_ENV
from hone_api.pods import pod_rules
from hone_api.pods.pod_schema import declare_kubernetes_type
from hone_api.pods.typed_values import KubernetesTyped

# How long the trainer has, by method, to save a checkpoint when it is stopped.
TRAINER_GRACE_SECONDS = {"lora": 60, "qlora": 60, "full": 300}

# How long an engine needs to leave the endpoints and to finish short answers.
ENGINE_LEAST_GRACE_SECONDS = 120

# Variables by which Hone's processes find each other, and its engines their keys.
RESERVED_VARIABLES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "JOB_COMPLETION_INDEX"),
    *("MASTER_ADDR", "MASTER_PORT", ADMIN_TOKEN_FILE_ENV, "HONE_POD_UID"),
)

# Names of the volumes of Hone's pods, in addition to those that begin with `claim-`, and to NUMBERED_VOLUMES.
RESERVED_VOLUMES = ("tmp", "shm", "manifest", "dataset", "served", "cache", "downloaded", "api-key", "adapters")
NUMBERED_VOLUMES = r"^((source-)?(secret|certificates|tracker)-[0-9]+|adapter-(secret|certificates)-[0-9a-f]{10})$"

# Names of Hone's own containers.
RESERVED_CONTAINERS = (
    *("trainer", "prepare", "push", "engine", "check", "guard", "download", "download-uris", "place", "adapters"),
    "download-adapters",
)


def _one_of(names: tuple[str, ...]) -> str:
    return f"[{', '.join(repr(name) for name in names)}]"


_VOLUME_NAME = make_rule(
    f"!(self in {_one_of(RESERVED_VOLUMES)}) && !self.startsWith('claim-') && !self.matches(r'{NUMBERED_VOLUMES}')",
    "is the name of a volume that Hone's pods have: choose another one, such as my-volume",
)
_CONTAINER_NAME = make_rule(
    f"!(self in {_one_of(RESERVED_CONTAINERS)})",
    "is the name of a container that Hone's pods have: choose another one, such as my-sidecar",
)
_MOUNT_PATH = [
    make_rule(
        "self.matches(r'^/') && !self.matches(r'(^|/)[.]{1,2}(/|$)') && !self.matches(r'//|:')",
        "must be an absolute path without '.', '..', '//' and ':', such as /etc/ssl/private-ca",
    ),
    make_rule(
        "!self.matches(r'^/(output|claims|configmaps|cache|served|proc|sys)(/|$)') && "
        "!self.matches(r'^/etc/hone(/|$)') && !self.matches(r'^/dev/(shm|termination-log)(/|$)') && "
        "!self.matches(r'^/(tmp|etc|dev)?/?$')",
        "is where Hone's pods keep their own files: choose another path, such as /mnt/data",
    ),
]


_RESOURCES = declare_rules(pod_rules.RESOURCE_NAMES, pod_rules.WHOLE_DEVICES)


class ComputeResources(ApiModel):
    """What one pod asks for. `memory` is request and limit, `cpu` a request only."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                "!has(self.cpu) || !has(self.requests) || !('cpu' in self.requests)",
                "cpu and requests.cpu are the same: remove one of them",
            ),
            make_rule(
                "!has(self.memory) || ((!has(self.requests) || !('memory' in self.requests)) && "
                "(!has(self.limits) || !('memory' in self.limits)))",
                "memory is both the request and the limit: remove it, or remove memory from requests and limits",
            ),
            make_rule(
                "(!has(self.requests) || !(self.gpuResource in self.requests)) && "
                "(!has(self.limits) || !(self.gpuResource in self.limits))",
                "the number of GPUs is the field gpus: remove gpuResource's resource from requests and limits",
            ),
            make_rule(
                "!has(self.requests) || self.requests.all(name, name in ['cpu', 'memory', 'ephemeral-storage'] || "
                "(has(self.limits) && name in self.limits && "
                "string(self.limits[name]) == string(self.requests[name])))",
                "only cpu, memory and ephemeral-storage may have a request that is not the limit: "
                "give the other resources in limits",
            ),
            pod_rules.REQUESTS_WITHIN_LIMITS,
            make_rule(
                "!has(self.cpu) || !has(self.limits) || !('cpu' in self.limits) || !isQuantity(string(self.cpu)) || "
                "!isQuantity(string(self.limits['cpu'])) || "
                "quantity(string(self.cpu)).compareTo(quantity(string(self.limits['cpu']))) <= 0",
                "cpu is above limits.cpu: lower cpu, or raise limits.cpu",
            ),
            make_rule(
                "!has(self.limits) || !self.limits.exists(name, name.startsWith('hugepages-')) || has(self.cpu) || "
                "has(self.memory) || ['cpu', 'memory'].exists(name, name in self.limits || (has(self.requests) && "
                "name in self.requests))",
                "hugepages need a request of cpu or memory, too: set cpu or memory",
            ),
        )
    )

    gpu_resource: ResourceName = Field(
        "amd.com/gpu",
        description="Extended resource that the device plugin offers. Partitioned GPUs under the plugin's strategy "
        "`mixed` have names such as `amd.com/cpx_nps1`. With Dynamic Resource Allocation, from Kubernetes 1.36 on: "
        "`deviceclass.resource.kubernetes.io/gpu.amd.com`.",
        examples=["amd.com/gpu"],
    )
    cpu: Quantity | None = Field(None, description="CPU request.", examples=["8"])
    memory: Quantity | None = Field(
        None, description="Memory request and limit. Beyond it the pod ends with HostOutOfMemory.", examples=["64Gi"]
    )
    shared_memory: Quantity = Field(
        "8Gi", description="Upper bound of the memory-backed /dev/shm. It counts towards `memory`.", examples=["16Gi"]
    )
    requests: dict[str, Quantity] = Field(
        {},
        max_length=32,
        json_schema_extra=_RESOURCES,
        description="Further requests of the working container, as in a Pod's spec.",
        examples=[{"ephemeral-storage": "20Gi"}],
    )
    limits: dict[str, Quantity] = Field(
        {},
        max_length=32,
        json_schema_extra=_RESOURCES,
        description="Further limits of the working container, as in a Pod's spec: CPU, ephemeral storage, resources "
        "of device plugins. Hone's own small containers get a limit of each of the first two that is named here.",
        examples=[{"cpu": "16", "rdma/hca": 1}],
    )


class EnvVar(KubernetesTyped):
    """One environment variable: exactly one of `value` and `valueFrom`."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule("has(self.value) != has(self.valueFrom)", "set exactly one of value and valueFrom"),
            make_rule(
                "self.name != 'PYTHONPATH' || has(self.value)",
                "PYTHONPATH must be given as value, since Hone adds a folder to it",
            ),
        )
    )

    name: Annotated[
        str,
        Field(
            max_length=253,
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            json_schema_extra={
                "x-message": "must be the name of an environment variable: letters, digits and '_', not beginning "
                "with a digit",
                **declare_rules(
                    make_rule(
                        f"!(self in {_one_of(RESERVED_VARIABLES)})",
                        "is a variable that Hone sets: remove it",
                    )
                ),
            },
        ),
    ] = Field(description="Name of the variable.", examples=["NCCL_DEBUG"])
    value: Annotated[str, Field(max_length=32768)] | None = Field(None, description="Its value.", examples=["INFO"])
    value_from: dict[str, Any] | None = Field(
        None,
        description="Where its value is: a key of a Secret or ConfigMap, or a field or resource of the pod.",
        json_schema_extra=declare_kubernetes_type("EnvVar.valueFrom"),
    )


class Toleration(ApiModel):
    """A taint that the pod tolerates, as in a Pod's spec."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                "self.operator == 'Equal' || !has(self.value)",
                "value belongs to operator Equal: remove it, or set operator: Equal",
            ),
            make_rule(
                "(has(self.key) && self.key != '') || self.operator == 'Exists'",
                "without a key the operator must be Exists",
            ),
            make_rule(
                f"!has(self.key) || self.key == '' || self.key.matches(r'{pod_rules.LABEL_KEY}')",
                "key must be that of a taint, such as example.com/dedicated",
            ),
            make_rule(
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds belongs to effect NoExecute: remove it, or set effect: NoExecute",
            ),
        )
    )

    key: Annotated[str, Field(max_length=317)] | None = Field(None, description="Taint key; left out: all keys.")
    operator: Literal["Exists", "Equal"] = Field("Equal", description="How key and value are compared.")
    value: Label | None = Field(None, description="Taint value for `Equal`.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Taint effect; left out: all effects."
    )
    toleration_seconds: Annotated[int, Field(ge=0)] | None = Field(
        None, description="How many seconds a NoExecute taint is tolerated; left out: without limit."
    )


class PodOptions(KubernetesTyped):
    """What users decide about Hone's pods. Without settings they keep the `restricted` Pod Security level."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                "!has(self.volumeMounts) || self.volumeMounts.all(mount, has(self.volumes) && "
                "self.volumes.exists(volume, volume.name == mount.name))",
                "every name in volumeMounts must be that of an item in volumes: add the volume, or correct the name",
            ),
            make_rule(
                "!has(self.initContainers) || self.initContainers.all(one, !has(one.volumeMounts) || "
                f"one.volumeMounts.all(mount, mount.name in {_one_of(RESERVED_VOLUMES)} || "
                "mount.name.startsWith('claim-') || "
                "(has(self.volumes) && self.volumes.exists(volume, volume.name == mount.name))))",
                "every name in volumeMounts of initContainers must be that of an item in volumes: add the volume, or "
                "correct the name",
            ),
            make_rule(
                "!has(self.supplementalGroups) || !has(self.securityContext) || "
                "!has(self.securityContext.supplementalGroups)",
                "supplementalGroups and securityContext.supplementalGroups are the same: remove one of them",
            ),
            make_rule(
                "!has(self.securityContext) || !has(self.securityContext.runAsUser) || "
                "self.securityContext.runAsUser != 0 || (has(self.securityContext.runAsNonRoot) && "
                "!self.securityContext.runAsNonRoot)",
                "securityContext.runAsUser 0 is root: choose another user, or set securityContext.runAsNonRoot: false",
            ),
            make_rule(
                "!has(self.containerSecurityContext) || !has(self.containerSecurityContext.runAsUser) || "
                "self.containerSecurityContext.runAsUser != 0 || (has(self.containerSecurityContext.runAsNonRoot) && "
                "!self.containerSecurityContext.runAsNonRoot)",
                "containerSecurityContext.runAsUser 0 is root: choose another user, or set "
                "containerSecurityContext.runAsNonRoot: false",
            ),
            pod_rules.CAPABILITIES_HAVE_EFFECT,
            make_rule(
                "!has(self.dnsPolicy) || self.dnsPolicy != 'None' || (has(self.dnsConfig) && "
                "has(self.dnsConfig.nameservers) && self.dnsConfig.nameservers.size() > 0)",
                "dnsPolicy None needs dnsConfig.nameservers: add them, or remove dnsPolicy",
            ),
        )
    )

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        None, description="Container image; left out: the runtime image that the operator was installed with."
    )
    image_pull_policy: str | None = Field(
        None,
        description="When the image is pulled, as in a Pod's spec.",
        json_schema_extra=declare_kubernetes_type("Container.imagePullPolicy"),
    )
    image_pull_secrets: list[LocalSecretReference] = Field(
        [], max_length=16, description="Secrets for pulling the image.", json_schema_extra=declare_list_key("name")
    )
    env: list[EnvVar] = Field(
        [], max_length=100, description="Further environment variables.", json_schema_extra=declare_list_key("name")
    )
    env_from: list[dict[str, Any]] = Field(
        [],
        description="ConfigMaps and Secrets whose keys become environment variables. Those of `env` and of Hone win.",
        json_schema_extra=declare_kubernetes_type("Container.envFrom"),
    )
    volumes: list[dict[str, Any]] = Field(
        [],
        description="Further volumes, for `volumeMounts` and `initContainers`.",
        json_schema_extra=declare_kubernetes_type("PodSpec.volumes", name=[_VOLUME_NAME]),
    )
    volume_mounts: list[dict[str, Any]] = Field(
        [],
        description="Where `volumes` are mounted in the container of the trainer or the engine.",
        json_schema_extra=declare_kubernetes_type("Container.volumeMounts", mountPath=_MOUNT_PATH),
    )
    init_containers: list[dict[str, Any]] = Field(
        [],
        description="Containers that run before Hone's own, in this order. With `restartPolicy: Always` they are "
        "sidecars, which start before Hone's containers and end after them.",
        json_schema_extra=declare_kubernetes_type("PodSpec.initContainers", name=[_CONTAINER_NAME]),
    )
    security_context: dict[str, Any] | None = Field(
        None,
        description="Security of the pods: the fields that are set here replace Hone's, such as runAsUser 65532. Pod "
        "Security Admission may refuse pods below the level `restricted`.",
        json_schema_extra=declare_kubernetes_type("PodSpec.securityContext"),
    )
    container_security_context: dict[str, Any] | None = Field(
        None,
        description="Security of the container of the trainer or the engine: the fields that are set here replace "
        "Hone's, such as readOnlyRootFilesystem.",
        json_schema_extra=declare_kubernetes_type("Container.securityContext"),
    )
    user_and_group: Literal["Hone", "Platform"] = Field(
        "Hone",
        description="Who sets runAsUser, runAsGroup and fsGroup: Hone, which sets 65532, or the platform: they are "
        "left out, and OpenShift's restricted-v2 or the image sets them.",
        examples=["Platform"],
    )
    supplemental_groups: list[Annotated[int, Field(ge=0, le=2147483647)]] = Field(
        [], max_length=16, description="Further group ids, such as that of the nodes' render group.", examples=[[109]]
    )
    service_account_name: ObjectName | None = Field(None, description="ServiceAccount of the pods.")
    automount_service_account_token: bool = Field(
        False,
        description="Mount the ServiceAccount's token, which sidecars may need. Hone's containers never call "
        "Kubernetes, but all containers of the pod can read it.",
    )
    node_selector: dict[str, Label] = Field(
        {},
        max_length=32,
        json_schema_extra=declare_rules(pod_rules.LABEL_KEYS),
        description="Node labels that the pod needs.",
    )
    tolerations: list[Toleration] = Field(
        [], max_length=32, description="Taints tolerated in addition to those of amd.com/gpu."
    )
    affinity: dict[str, Any] | None = Field(
        None, description="Affinity, as in a Pod's spec.", json_schema_extra=declare_kubernetes_type("PodSpec.affinity")
    )
    topology_spread_constraints: list[dict[str, Any]] = Field(
        [],
        description="How pods are spread over nodes and zones, as in a Pod's spec. One without labelSelector counts "
        "the pods of this object.",
        json_schema_extra=declare_kubernetes_type("PodSpec.topologySpreadConstraints"),
    )
    priority_class_name: ObjectName | None = Field(None, description="PriorityClass of the pods.")
    scheduler_name: ObjectName | None = Field(None, description="Scheduler of the pods.")
    runtime_class_name: ObjectName | None = Field(None, description="RuntimeClass of the pods.")
    host_network: bool = Field(
        False,
        description="Use the node's network, as RDMA may need. The ports of Hone are then the node's, so that a node "
        "takes one such pod.",
    )
    dns_policy: str | None = Field(
        None,
        description="How names are resolved; left out: ClusterFirst, with hostNetwork ClusterFirstWithHostNet.",
        json_schema_extra=declare_kubernetes_type("PodSpec.dnsPolicy"),
    )
    dns_config: dict[str, Any] | None = Field(
        None,
        description="DNS servers, search domains and options, as in a Pod's spec.",
        json_schema_extra=declare_kubernetes_type("PodSpec.dnsConfig"),
    )
    host_aliases: list[dict[str, Any]] = Field(
        [],
        description="Further lines of /etc/hosts, as in a Pod's spec.",
        json_schema_extra=declare_kubernetes_type("PodSpec.hostAliases"),
    )
    share_process_namespace: bool = Field(
        False, description="Let the containers of the pod see each other's processes."
    )
    termination_grace_period_seconds: Annotated[int, Field(ge=0, le=86400)] | None = Field(
        None,
        description="Seconds that a pod has to end; left out: what saving a checkpoint or finishing answers needs.",
        examples=[600],
    )
    labels: dict[str, Label] = Field(
        {},
        max_length=32,
        json_schema_extra=declare_rules(pod_rules.LABEL_KEYS, pod_rules.NOT_RESERVED),
        description="Further labels on the pods and their controller.",
    )
    annotations: dict[str, Annotated[str, Field(max_length=4096)]] = Field(
        {},
        max_length=32,
        json_schema_extra=declare_rules(pod_rules.ANNOTATION_KEYS, pod_rules.NOT_RESERVED),
        description="Further annotations on the pods and their controller.",
    )
