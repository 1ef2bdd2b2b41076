"""Remedies for what only some platforms do: schedulers, policies, sidecars, autoscalers, container runtimes.

The messages are those of public reports: of CRI-O, containerd, Gatekeeper, kube-scheduler and the kubelet.
"""

from observed import BEFORE, terminated
from observed import pod as pod_in_state
from remedy_fields import ONE, SMALL_NODE, ZONE, affinity
from remedy_states import Field, Object, World, node, unless, unplaced
from remedy_world import ended, explain_admission, explain_filtered, explain_placement, explain_pull, failed_pod, taint

SPREAD: Object = {
    "maxSkew": 1,
    "topologyKey": "kubernetes.io/hostname",
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {"matchLabels": {"a": "b"}},
}

FIELDS = [
    Field(
        "an init container larger than any node",
        unplaced(SMALL_NODE),
        {"spec.pod.initContainers|spec.pod.initContainers[0].resources.requests.memory": "125Gi"},
        ONE
        | {
            "pod": {
                "initContainers": [
                    {"name": "warm", "image": "i", "command": ["true"], "resources": {"requests": {"memory": "1Ti"}}}
                ]
            }
        },
    ),
    *(
        Field(
            f"the scheduler's filter: {words}",
            unless(cured, explain_filtered(words)),
            {field: value},
            ONE,
        )
        for words, field, value, cured in (
            (
                "2 node(s) didn't match pod topology spread constraints",
                "spec.pod.topologySpreadConstraints",
                [SPREAD],
                lambda pod: pod["spec"].get("topologySpreadConstraints"),
            ),
            (
                "2 node(s) didn't match pod anti-affinity rules",
                "spec.pod.affinity",
                affinity(ZONE),
                lambda pod: pod["spec"].get("affinity"),
            ),
        )
    ),
]

WORLDS = [
    World(
        "a node that its administrator took out of service",
        explain_placement,
        [taint("node.kubernetes.io/out-of-service", "nodeshutdown")],
        ("kubectl taint node gpu-1 node.kubernetes.io/out-of-service-",),
        [node()],
    ),
    World(
        "a node that is being prepared",
        explain_placement,
        [taint("node.cilium.io/agent-not-ready", "true")],
        ("gpu-1", "network or storage driver"),
        [node()],
    ),
    World(
        "a node that is being removed",
        explain_placement,
        [taint("ToBeDeletedByClusterAutoscaler", "1733000000")],
        ("gpu-1", "being removed"),
        [node()],
    ),
    *(
        World(
            f"the scheduler's filter: {words}",
            lambda words: explain_filtered(words) if words else None,
            words,
            (name,),
            "",
        )
        for words, name in (
            ("2 node(s) exceed max volume count", "add nodes"),
            ("2 node(s) didn't have free ports for the requested pod ports", "add nodes"),
            ("2 node(s) didn't satisfy existing pods anti-affinity rules", "add nodes"),
            ("2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode", "claim"),
        )
    ),
    *(
        World(
            f"a container that can't be started: {words}",
            ended,
            failed_pod({}, terminated={**terminated(128, words), "reason": "StartError"}),
            (name,),
            pod_in_state(running={"startedAt": BEFORE}),
        )
        for words, name in (
            ('adding custom device "/dev/dri/renderD129": no such file or directory', "kubectl cordon NODE"),
            ('exec: "python3": executable file not found in $PATH', "spec.pod.image"),
        )
    ),
    *(
        World(
            f"a trainer that ended with {name}",
            ended,
            failed_pod({}, terminated=terminated(code)),
            (name, what),
            pod_in_state(running={"startedAt": BEFORE}),
        )
        for code, name, what in (
            (132, "SIGILL", "spec.pod.nodeSelector"),
            (133, "SIGTRAP", "its log"),
            (134, "SIGABRT", "HSA_OVERRIDE_GFX_VERSION in spec.pod.env"),
            (135, "SIGBUS", "spec.resources.sharedMemory"),
            (136, "SIGFPE", "spec.pod.image"),
            (139, "SIGSEGV", "amdgpu driver"),
        )
    ),
    World(
        "a container that the node lost",
        ended,
        failed_pod({}, terminated={**terminated(255), "reason": "Unknown"}),
        ("kubectl describe node gpu-1",),
        pod_in_state(running={"startedAt": BEFORE}),
    ),
    World(
        "GPUs of two NUMA nodes",
        ended,
        failed_pod(
            {"reason": "TopologyAffinityError", "message": "Resources cannot be allocated with Topology locality"}
        ),
        ("spec.resources.gpus", "topologyManagerPolicy: best-effort"),
        pod_in_state(running={"startedAt": BEFORE}),
    ),
    World(
        "a busy API server",
        explain_admission,
        'pods "x" is forbidden: status unknown for quota: q, resources: requests.amd.com/gpu',
        ("quota: q",),
        "",
    ),
    World(
        "a quota on an injected container",
        explain_admission,
        'pods "x" is forbidden: failed quota: q: must specify limits.cpu for: istio-proxy',
        ("istio-proxy", "LimitRange"),
        "",
    ),
    *(
        World(
            f"a policy's limit: {words}",
            explain_admission,
            f'admission webhook "v.sh" denied the request: container <trainer> memory {words}',
            (f"{verb} spec.resources.memory",),
            "",
        )
        for words, verb in (
            ("limit <96Gi> is higher than the maximum allowed of <64Gi>", "Lower"),
            ("request <1Gi> is lower than 4Gi", "Raise"),
        )
    ),
    *(
        World(f"an image: {words}", explain_pull, words, (name,), "")
        for words, name in (
            ("short name mode is enforcing, but image name x/y returns ambiguous list", "docker.io/"),
            ("Source image rejected: A signature was required, but no signature exists", "signed"),
            ('Container image "x" is not present with pull policy of Never', "spec.pod.imagePullPolicy: IfNotPresent"),
        )
    ),
]
