"""Remedies that name fields of a pod, each with the state that prints it and the values of a user who obeys."""

from typing import Any

import yaml
from hone_api.reasons import UNSCHEDULABLE, HoneError
from hone_operator.diagnosis import pod_state
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.autoscalers import ScalingReport, explain_scaling
from hone_operator.diagnosis.image_pull import explain_image_pull
from hone_operator.diagnosis.nodes import Node, Taint
from hone_operator.diagnosis.pod_failure import explain_out_of_memory, explain_pod_failure
from hone_operator.inferenceservice.rollout_deadlock import explain_deadlock
from observed import NOW
from observed import pod as pod_in_state
from pod_cases import LATER
from remedy_states import (
    GIB,
    GPU,
    Field,
    Object,
    container,
    engine_pod_of,
    node,
    pod_of,
    unless,
    unplaced,
)

SCC = 'pods "x" is forbidden: unable to validate against any security context constraint: []'

POLICY = 'admission webhook "v" denied the request: validation error: '

PLATFORM: Object = {"pod": {"userAndGroup": "Platform"}}

ZONE = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}


def affinity(*terms: Object) -> Object:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}


def evicted(words: str) -> Any:
    """Return the remedy of a pod that its node evicted; well once the pod asks for, or may use, as much as it used."""
    found = pod_in_state()
    found["spec"]["nodeName"] = "gpu-1"
    found["status"] |= {"phase": "Failed", "reason": "Evicted", "message": words}
    failure = explain_pod_failure(found, "trainer")
    assert failure
    sentence, _, remedy = failure.message.partition(". ")
    return HoneError(UNSCHEDULABLE, sentence, remedy=remedy)


def limit(kind: str, name: str) -> Any:
    return lambda pod: container(pod)["resources"][kind].get(name)


def killed(limits: Object) -> HoneError:
    found = pod_in_state()
    found["spec"]["containers"][0]["resources"] = {"limits": limits}
    return explain_out_of_memory(found, "trainer")


def roll_out(spec: Object) -> HoneError | None:
    """Return the state of an engine that asks for the GPUs that its predecessor holds."""
    template = engine_pod_of(spec)
    strategy = spec.get("strategy") or {"type": "RollingUpdate"}
    new, old = ({**template, "metadata": {"labels": {"pod-template-hash": name}}} for name in ("new", "old"))
    old["spec"] = old["spec"] | {"nodeName": "gpu-1"}
    error = HoneError(UNSCHEDULABLE, f"0/1 nodes are available: 1 Insufficient {GPU}")
    found = explain_deadlock(error, new, [old, new], {"spec": {"strategy": strategy}})
    return None if found is error else found


def other_scheduler(spec: Object) -> HoneError | None:
    name = pod_of(spec)["spec"].get("schedulerName", "default-scheduler")
    found = pod_in_state(scheduled=False)
    found["spec"]["schedulerName"] = name
    if name == "default-scheduler":
        return None
    return pod_state.explain_not_running(found, "trainer", cluster=None, warning=None, now=NOW)


def image(words: str, good: Any) -> Any:
    return unless(good, explain_image_pull("ErrImagePull", words, "registry.example.com/x:1"))


def has_image(name: str) -> Any:
    return lambda pod: container(pod)["image"] == name


def taint(value: str, effect: str = "NoSchedule") -> Any:
    return unplaced(node(taints=(Taint("example.com/for", value, effect),)))


def printed_toleration(value: str, effect: str = "NoSchedule") -> Any:
    """Return the toleration as the remedy prints it, read as the YAML that a user pastes it into."""
    error = taint(value, effect)({"resources": {"gpus": 1}})
    return yaml.safe_load("{" + error.remedy.partition("{")[2].partition("}")[0] + "}")


ONE: Object = {"resources": {"gpus": 1}}

SMALL = {"cpu": 8.0, "memory": 125.66 * GIB, "ephemeral-storage": 20.3 * GIB, GPU: 4.0}

SMALL_NODE = node(allocatable=SMALL, capacity=SMALL)

LACKS_CPU = ("limits", "cpu"), ("limits", "ephemeral-storage"), ("requests", "ephemeral-storage"), ("requests", "cpu")

EVICTED = "The node was low on resource: {}. Container trainer was using 9Gi, request is 0, has larger consumption."

OF_PLACING = [
    Field("too many GPUs", unplaced(node()), {"spec.resources.gpus": 8}, {"resources": {"gpus": 16}}),
    *(
        Field(
            f"more {field} than any node has",
            unplaced(SMALL_NODE),
            {f"spec.resources.{field}": value},
            {"resources": most},
        )
        for field, value, most in (
            ("memory", "125Gi", {"gpus": 1, "memory": "1Ti"}),
            ("cpu", "8", {"gpus": 1, "cpu": "64"}),
            ("requests.ephemeral-storage", "20Gi", {"gpus": 1, "requests": {"ephemeral-storage": "1Ti"}}),
            ("limits.rdma/hca", "0", {"gpus": 1, "limits": {"rdma/hca": "1"}}),
            ("limits.a.example.com/nic", "0", {"gpus": 1, "limits": {"a.example.com/nic": "1"}}),
        )
    ),
    Field(
        "memory and GPUs are on different nodes",
        unplaced(SMALL_NODE, node("cpu-1", resource="none")),
        {"spec.resources.memory": "100Gi"},
        {"resources": {"gpus": 1, "memory": "512Gi"}},
    ),
    *(
        Field(f"the GPUs are called {name}", unplaced(node(resource=name)), {"spec.resources.gpuResource": name}, ONE)
        for name in ("amd.com/cpx_nps1", "amd.com/spx_nps1")
    ),
    Field(
        "the nodes have GPUs of a name that Hone does not know",
        unplaced(node(resource="example.com/gpu")),
        {"spec.resources.gpuResource": "example.com/gpu"},
        ONE,
    ),
    Field(
        "GPUs are handed out by claims",
        unplaced(Node("gpu-1"), dra_resources=("deviceclass.resource.kubernetes.io/gpu.amd.com",)),
        {"spec.resources.gpuResource": "deviceclass.resource.kubernetes.io/gpu.amd.com"},
        ONE,
    ),
    *(
        Field(
            f"taint {value or 'without a value'}",
            taint(value),
            {"spec.pod.tolerations": [printed_toleration(value)]},
            ONE,
        )
        for value in ("", "ml", "true", "1", "null", "1e3", "no", "0x1f", "a.b-c")
    ),
    Field(
        "nodeSelector",
        unplaced(node(labels={"zone": "a"})),
        {"spec.pod.nodeSelector": {"zone": "a"}},
        ONE | {"pod": {"nodeSelector": {"zone": "b"}}},
    ),
    Field(
        "affinity",
        unplaced(node(labels={"zone": "a"})),
        {"spec.pod.affinity": affinity(ZONE)},
        ONE | {"pod": {"affinity": affinity({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]})}},
    ),
    Field(
        "no such scheduler",
        other_scheduler,
        {"spec.pod.schedulerName": "default-scheduler"},
        {"pod": {"schedulerName": "nope"}},
    ),
    *(
        Field(
            f"the autoscaler adds no node: {field}",
            unless(cured, explain_scaling("0/1 nodes are available", ScalingReport(False, "no node group matches"))),
            {field: value},
            ONE,
        )
        for field, value, cured in (
            ("spec.resources", {"gpus": 1, "cpu": "1"}, limit("requests", "cpu")),
            ("spec.pod.nodeSelector", {"zone": "a"}, lambda pod: pod["spec"].get("nodeSelector")),
            (
                "spec.pod.tolerations",
                [{"operator": "Exists"}],
                lambda pod: {"operator": "Exists"} in pod["spec"]["tolerations"],
            ),
            ("spec.pod.affinity", affinity(ZONE), lambda pod: pod["spec"].get("affinity")),
        )
    ),
    Field(
        "a roll-out waits for itself",
        roll_out,
        {"spec.strategy.type": "Recreate"},
        {"resources": {"gpus": 8}},
        "InferenceService",
    ),
]

OF_ADMISSION: list[tuple[str, str, str, Any, Any]] = [
    (
        "no RuntimeClass",
        'pod rejected: RuntimeClass "nope" not found',
        "spec.pod.runtimeClassName",
        "kata",
        lambda pod: pod["spec"].get("runtimeClassName") == "kata",
    ),
    (
        "the namespace's node selector",
        "pod node label selector conflicts with its namespace node label selector",
        "spec.pod.nodeSelector",
        {"zone": "a"},
        lambda pod: pod["spec"].get("nodeSelector") == {"zone": "a"},
    ),
    (
        "the namespace's tolerations",
        "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist",
        "spec.pod.tolerations",
        [{"key": "team", "operator": "Exists"}],
        lambda pod: any(each.get("key") == "team" for each in pod["spec"].get("tolerations") or []),
    ),
    (
        "a policy wants a label",
        "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: the label team is missing",
        "spec.pod.labels",
        {"team": "a"},
        lambda pod: pod["metadata"]["labels"].get("team") == "a",
    ),
    (
        "a policy wants something",
        "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: only priority low",
        "spec.pod|spec.pod.priorityClassName",
        "low",
        lambda pod: pod["spec"].get("priorityClassName") == "low",
    ),
    (
        "a LimitRange wants a limit",
        "maximum memory usage per Pod is 1Gi.  No limit is specified",
        "spec.resources.memory",
        "1Gi",
        lambda pod: limit("limits", "memory")(pod) == "1Gi",
    ),
    (
        "a LimitRange wants more",
        "minimum ephemeral-storage usage per Container is 2Gi, but request is 1Gi",
        "spec.resources.requests.ephemeral-storage",
        "2Gi",
        lambda pod: limit("requests", "ephemeral-storage")(pod) == "2Gi",
    ),
]

OF_REFUSALS = [
    Field(
        "OpenShift chooses the user",
        unless(lambda pod: "runAsUser" not in pod["spec"]["securityContext"], explain_refusal(SCC)),
        {"spec.pod.userAndGroup": "Platform"},
        {},
    ),
    Field(
        "OpenShift allows a ServiceAccount",
        unless(lambda pod: pod["spec"].get("serviceAccountName") == "tuner", explain_refusal(SCC)),
        {"spec.pod.serviceAccountName": "tuner"},
        {},
    ),
    Field(
        "the policy names a field of the pod",
        unless(
            lambda pod: pod["spec"]["securityContext"]["fsGroup"] == 7,
            explain_refusal(f"{POLICY}spec/securityContext/fsGroup"),
        ),
        {"spec.pod.securityContext": {"fsGroup": 7}},
        {},
    ),
    Field(
        "the policy names a field of the container",
        unless(
            lambda pod: container(pod)["securityContext"].get("runAsUser") == 7, explain_refusal(f"{POLICY}runAsUser")
        ),
        {"spec.pod.containerSecurityContext": {"runAsUser": 7}},
        {},
    ),
    Field(
        "no ServiceAccount",
        unless(
            lambda pod: pod["spec"].get("serviceAccountName") == "default",
            explain_refusal('pods "x" is forbidden: serviceaccount "nope" not found'),
        ),
        {"spec.pod.serviceAccountName": "default"},
        {"pod": {"serviceAccountName": "nope"}},
    ),
    Field(
        "no PriorityClass",
        unless(
            lambda pod: pod["spec"].get("priorityClassName") == "high",
            explain_refusal('pods "x" is forbidden: no PriorityClass with name nope was found'),
        ),
        {"spec.pod.priorityClassName": "high"},
        {"pod": {"priorityClassName": "nope"}},
    ),
    *(
        Field(
            name,
            unless(is_cured, explain_refusal(f'pods "x" is forbidden: {words}')),
            {field: value},
            {},
        )
        for name, words, field, value, is_cured in OF_ADMISSION
    ),
    *(
        Field(
            f"{who} wants {kind}.{name}",
            unless(limit(kind, name), explain_refusal(words.format(kind=kind, name=name))),
            {f"spec.resources.{'cpu' if (kind, name) == ('requests', 'cpu') else f'{kind}.{name}'}": "1"},
            {},
        )
        for kind, name in LACKS_CPU
        for who, words in (
            ("a quota", 'pods "x" is forbidden: failed quota: q: must specify {kind}.{name} for: trainer'),
            ("a policy", POLICY + "path /spec/containers/0/resources/{kind}/{name}/"),
        )
    ),
    *(
        Field(
            f"Kubernetes refuses a port of a {kind}",
            unless(
                lambda pod: pod["spec"]["initContainers"][-1]["ports"][0]["name"] == "a-b",
                explain_refusal(
                    f'{kind} "x" is invalid: {path}: Invalid value: "a--b": must not contain consecutive hyphens'
                ),
            ),
            {"spec.pod.initContainers[0].ports[0].name": "a-b"},
            LATER["port's name with two dashes"][0],
        )
        for kind, path in (
            ("Job.batch", "spec.template.spec.initContainers[0].ports[0].name"),
            ("Pod", "spec.initContainers[0].ports[0].name"),
        )
    ),
]

OF_PODS = [
    *(
        Field(
            f"image: {words}",
            image(words, has_image("registry.example.com/y:1")),
            {"spec.pod.image": "registry.example.com/y:1"},
            {},
        )
        for words in ("unauthorized", "manifest unknown: not found", "couldn't parse image name")
    ),
    Field(
        "image: no credentials",
        image("unauthorized", lambda pod: pod["spec"].get("imagePullSecrets")),
        {"spec.pod.imagePullSecrets": [{"name": "registry"}]},
        {},
    ),
    Field(
        "killed at its limit",
        unless(lambda pod: limit("limits", "memory")(pod) == "16Gi", killed({"memory": "8Gi"})),
        {"spec.resources.memory": "16Gi"},
        {"resources": {"gpus": 0, "memory": "8Gi"}},
    ),
    Field(
        "killed without a limit", unless(limit("requests", "memory"), killed({})), {"spec.resources.memory": "16Gi"}, {}
    ),
    *(
        Field(
            f"evicted for {name}", unless(limit("requests", name), evicted(EVICTED.format(name))), {field: "10Gi"}, {}
        )
        for name, field in (
            ("memory", "spec.resources.memory"),
            ("ephemeral-storage", "spec.resources.requests.ephemeral-storage"),
        )
    ),
    Field(
        "evicted for its own limit",
        unless(
            lambda pod: limit("limits", "ephemeral-storage")(pod) == "2Gi",
            evicted("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi."),
        ),
        {"spec.resources.limits.ephemeral-storage": "2Gi"},
        {"resources": {"gpus": 0, "limits": {"ephemeral-storage": "1Gi"}}},
    ),
    Field(
        "evicted for its shared memory",
        unless(
            lambda pod: any(
                (v.get("emptyDir") or {}).get("sizeLimit") == "16Gi" and v["name"] == "shm"
                for v in pod["spec"]["volumes"]
            ),
            evicted('Usage of EmptyDir volume "shm" exceeds the limit "8Gi".'),
        ),
        {"spec.resources.sharedMemory": "16Gi"},
        {},
    ),
]


FIELDS = [*OF_PLACING, *OF_REFUSALS, *OF_PODS]
