"""Parts of a spec that Kubernetes refuses or takes in a pod: what the contract has to refuse, and what it must not."""

from typing import Any

Spec = dict[str, Any]
V, W = {"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}
EXEC = {"exec": {"command": ["a"]}}


def resources(**fields: Any) -> Spec:
    return {"resources": {"gpus": 0, **fields}}


def limits(**amounts: Any) -> Spec:
    return resources(limits={name.replace("__", "/").replace("_", "-"): amount for name, amount in amounts.items()})


def pod(**fields: Any) -> Spec:
    return {"resources": {"gpus": 0}, "pod": fields}


def init(**fields: Any) -> Spec:
    return pod(volumes=[V], initContainers=[{"name": "x", "image": "i", **fields}])


def sidecar(**fields: Any) -> Spec:
    return init(restartPolicy="Always", **fields)


def volume(**source: Any) -> Spec:
    return pod(volumes=[{"name": "v", **source}])


def mount(**fields: Any) -> Spec:
    return pod(volumes=[V], volumeMounts=[{"name": "v", "mountPath": "/mnt/a", **fields}])


def env(**source: Any) -> Spec:
    return pod(env=[{"name": "A", "valueFrom": source}])


def affinity(kind: str, when: str, value: Any) -> Spec:
    return pod(affinity={kind: {f"{when}DuringSchedulingIgnoredDuringExecution": value}})


def node_term(where: str = "matchExpressions", **fields: Any) -> Spec:
    term = {where: [{"key": "a", **fields}]}
    return affinity("nodeAffinity", "required", {"nodeSelectorTerms": [term]})


def pod_term(**fields: Any) -> Spec:
    return affinity("podAffinity", "required", [{"topologyKey": "a", "labelSelector": {}, **fields}])


def spread(**fields: Any) -> Spec:
    constraint = {"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule", **fields}
    return pod(topologySpreadConstraints=[constraint])


def preferred(weight: int) -> Spec:
    preference = {"matchExpressions": [{"key": "a", "operator": "Exists"}]}
    return affinity("nodeAffinity", "preferred", [{"weight": weight, "preference": preference}])


REFUSED: dict[str, Spec] = {
    "cpu above its limit": resources(cpu="8", limits={"cpu": "4"}),
    "cpu request above its limit": resources(requests={"cpu": "4"}, limits={"cpu": 2}),
    "memory request above its limit": resources(requests={"memory": "8Gi"}, limits={"memory": "4000M"}),
    "storage request above its limit": resources(
        requests={"ephemeral-storage": "1Ti"}, limits={"ephemeral-storage": "9Gi"}
    ),
    "hugepages alone": limits(hugepages_2Mi="64Mi"),
    "half a device": limits(rdma__hca="0.5"),
    "a milli device": limits(rdma__hca="1500m"),
    "a resource without a domain": limits(gpu="1"),
    "pods as a resource": limits(pods="1"),
    "storage as a resource": limits(storage="1Gi"),
    "a quota's name as a resource": resources(limits={"requests.x/y": "1"}),
    "a long name of a resource": resources(limits={"x.com/" + "y" * 64: "1"}),
    "sidecar's request above its limit": sidecar(resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
    "sidecar's unknown resource": sidecar(resources={"limits": {"gpu": "1"}}),
    "label's key": pod(labels={"a b": "c"}),
    "label's prefix": pod(labels={"A_/x": "c"}),
    "label's long key": pod(labels={"a" * 64: "c"}),
    "annotation's key": pod(annotations={"a b": "c"}),
    "node selector's key": pod(nodeSelector={"a b": "x"}),
    "toleration's value": pod(tolerations=[{"key": "a", "value": "b c"}]),
    "toleration's key": pod(tolerations=[{"key": "a b", "operator": "Exists"}]),
    "toleration's second slash": pod(tolerations=[{"key": "a/b/c", "operator": "Exists"}]),
    "toleration without a key": pod(tolerations=[{"key": "", "value": "x"}]),
    "volume of two sources": volume(emptyDir={}, configMap={"name": "c"}),
    "volume's name": pod(volumes=[{"name": "V_", "emptyDir": {}}]),
    "volume's mode": volume(configMap={"name": "c", "defaultMode": 5000}),
    "volume's absolute item": volume(configMap={"name": "c", "items": [{"key": "a", "path": "/abs"}]}),
    "volume's item above": volume(secret={"secretName": "c", "items": [{"key": "a", "path": "../x"}]}),
    "volume of no ConfigMap": volume(configMap={}),
    "volume of no Secret": volume(secret={}),
    "volume of a path above": volume(hostPath={"path": "a/../b"}),
    "volume of no template": volume(ephemeral={}),
    "volume of a driver": volume(csi={"driver": "a b"}),
    "volume of a relative export": volume(nfs={"server": "s", "path": "rel"}),
    "volume of an unknown field": volume(downwardAPI={"items": [{"path": "x", "fieldRef": {"fieldPath": "spec.x"}}]}),
    "volume of a short token": volume(
        projected={"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 10}}]}
    ),
    "file of no source": volume(downwardAPI={"items": [{"path": "x"}]}),
    "file of an unnamed container": volume(
        downwardAPI={"items": [{"path": "x", "resourceFieldRef": {"resource": "limits.cpu"}}]}
    ),
    "projection of two": volume(projected={"sources": [{"secret": {"name": "a"}, "configMap": {"name": "b"}}]}),
    "mount of a folder above": mount(subPath="../x"),
    "mount of an absolute folder": mount(subPath="/x"),
    "mount of two folders": mount(subPath="x", subPathExpr="y"),
    "mount read-only below alone": mount(recursiveReadOnly="Enabled"),
    "variable of two sources": env(fieldRef={"fieldPath": "metadata.name"}, secretKeyRef={"name": "a", "key": "b"}),
    "variable of no source": env(),
    "variable of an unknown field": env(fieldRef={"fieldPath": "status.x"}),
    "variable of an unknown resource": env(resourceFieldRef={"resource": "limits.x"}),
    "variable of a key": env(secretKeyRef={"name": "a", "key": "b c"}),
    "variable of no Secret": env(secretKeyRef={"key": "b"}),
    "variables of both": pod(envFrom=[{"secretRef": {"name": "a"}, "configMapRef": {"name": "b"}}]),
    "variables of none": pod(envFrom=[{"prefix": "A"}]),
    "container without image": pod(initContainers=[{"name": "x"}]),
    "container's name": init(name="X"),
    "probe of no sidecar": init(livenessProbe=EXEC),
    "lifecycle of no sidecar": init(lifecycle={"preStop": EXEC}),
    "probe of two handlers": sidecar(livenessProbe=EXEC | {"tcpSocket": {"port": 1}}),
    "probe of none": sidecar(livenessProbe={"periodSeconds": 3}),
    "probe of an empty command": sidecar(livenessProbe={"exec": {}}),
    "probe of port 0": sidecar(livenessProbe={"tcpSocket": {"port": 0}}),
    "probe's successes": sidecar(livenessProbe=EXEC | {"successThreshold": 2}),
    "start's successes": sidecar(startupProbe=EXEC | {"successThreshold": 2}),
    "probe's grace": sidecar(readinessProbe=EXEC | {"terminationGracePeriodSeconds": 3}),
    "handler of none": sidecar(lifecycle={"preStop": {}}),
    "ports of one name": sidecar(ports=[{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]),
    "port's long name": sidecar(ports=[{"containerPort": 1, "name": "a" * 16}]),
    "port's name of digits": sidecar(ports=[{"containerPort": 1, "name": "1"}]),
    "port 0": sidecar(ports=[{"containerPort": 0}]),
    "mount of no volume": init(volumeMounts=[{"name": "nope", "mountPath": "/a"}]),
    "value and source": sidecar(
        env=[{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    ),
    "privileged without escalation": sidecar(securityContext={"privileged": True, "allowPrivilegeEscalation": False}),
    "capability with prefix": pod(containerSecurityContext={"capabilities": {"add": ["CAP_SYS_ADMIN"]}}),
    "unmasked proc": pod(containerSecurityContext={"procMount": "Unmasked"}),
    "sysctl twice": pod(securityContext={"sysctls": [{"name": "a.b", "value": "1"}, {"name": "a.b", "value": "2"}]}),
    "sysctl's name": pod(securityContext={"sysctls": [{"name": "A B", "value": "1"}]}),
    "local seccomp without profile": pod(securityContext={"seccompProfile": {"type": "Localhost"}}),
    "profile without local seccomp": pod(
        securityContext={"seccompProfile": {"type": "RuntimeDefault", "localhostProfile": "x"}}
    ),
    "local AppArmor without profile": pod(securityContext={"appArmorProfile": {"type": "Localhost"}}),
    "DNS server": pod(dnsConfig={"nameservers": ["x"]}),
    "DNS server with leading 0": pod(dnsConfig={"nameservers": ["010.1.1.1"]}),
    "four DNS servers": pod(dnsConfig={"nameservers": [f"1.1.1.{i}" for i in range(4)]}),
    "DNS search": pod(dnsConfig={"searches": ["a b"]}),
    "33 DNS searches": pod(dnsConfig={"searches": [f"a{i}.b" for i in range(33)]}),
    "DNS option without name": pod(dnsConfig={"options": [{"value": "1"}]}),
    "alias of no address": pod(hostAliases=[{"ip": "x", "hostnames": ["a"]}]),
    "alias with leading 0": pod(hostAliases=[{"ip": "010.1.1.1", "hostnames": ["a"]}]),
    "alias's name": pod(hostAliases=[{"ip": "1.1.1.1", "hostnames": ["A_b"]}]),
    "skew 0": spread(maxSkew=0),
    "domains of a wish": spread(whenUnsatisfiable="ScheduleAnyway", minDomains=2),
    "0 domains": spread(minDomains=0),
    "spread over nothing": spread(topologyKey=""),
    "selector's value": spread(labelSelector={"matchLabels": {"a": "b c"}}),
    "selector's key": spread(labelSelector={"matchExpressions": [{"key": "a b", "operator": "Exists"}]}),
    "selector's operator": spread(labelSelector={"matchExpressions": [{"key": "a", "operator": "Is"}]}),
    "selector In nothing": spread(labelSelector={"matchExpressions": [{"key": "a", "operator": "In"}]}),
    "selector Exists with values": spread(
        labelSelector={"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}
    ),
    "node In nothing": node_term(operator="In"),
    "node Exists with values": node_term(operator="Exists", values=["x"]),
    "no node term": affinity("nodeAffinity", "required", {"nodeSelectorTerms": []}),
    "weight 0": preferred(0),
    "weight 101": preferred(101),
    "pod term over nothing": pod_term(topologyKey=""),
    "pod term's value": pod_term(labelSelector={"matchLabels": {"a": "b c"}}),
}
"""Kubernetes refuses the pod."""

UNWISE: dict[str, Spec] = {
    "dropped capability with prefix": pod(containerSecurityContext={"capabilities": {"drop": ["CAP_NET_RAW"]}}),
    "capability of another user": pod(containerSecurityContext={"capabilities": {"add": ["IPC_LOCK"]}}),
    "capability of another user of the pod": pod(
        userAndGroup="Platform",
        securityContext={"runAsUser": 1000},
        containerSecurityContext={"capabilities": {"add": ["IPC_LOCK"]}},
    ),
    "a node above a fraction": node_term(operator="Gt", values=["3.5"]),
    **{
        f"{kind} {key}": pod(**{kind: {key: "x"}})
        for kind in ("labels", "annotations")
        for key in (
            *("hone.dev/upgrade", "app.kubernetes.io/managed-by", "app.kubernetes.io/component"),
            *("batch.kubernetes.io/job-name", "job-name", "controller-uid", "deployment.kubernetes.io/revision"),
        )
    },
}
"""Kubernetes takes it, and Hone's pods would not be what the user or Hone expects."""

ACCEPTED: dict[str, Spec] = {
    "cpu at its limit": resources(cpu="8", limits={"cpu": "8000m"}),
    "request below its limit": resources(requests={"memory": "4000M"}, limits={"memory": "8Gi"}),
    "hugepages": resources(cpu="1", limits={"hugepages-2Mi": "64Mi"}),
    "devices": limits(rdma__hca=1),
    "thousand devices": limits(rdma__hca="1k"),
    "label": pod(labels={"a.B_c": "", "example.com/x": "1", "app.kubernetes.io/name": "x"}),
    "annotation": pod(annotations={"Example.com/x": "any text", "a": ""}),
    "toleration of all": pod(tolerations=[{"key": "", "operator": "Exists"}, {"operator": "Exists"}]),
    "toleration": pod(tolerations=[{"key": "a.b/c", "value": "d"}]),
    "volume without source": volume(),
    "volumes": pod(
        volumes=[
            {"name": "a", "configMap": {"name": "c", "defaultMode": 0o440, "items": [{"key": "a", "path": "b/..c"}]}},
            {"name": "b", "csi": {"driver": "secrets-store.csi.k8s.io", "readOnly": True}},
            {"name": "c", "downwardAPI": {"items": [{"path": "x", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"name": "d", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 600}}]}},
            {"name": "e", "nfs": {"server": "s", "path": "/x"}},
            {"name": "f", "image": {"reference": "a:1"}},
            {"name": "g", "hostPath": {"path": "/x", "type": "Directory"}},
            {
                "name": "h",
                "ephemeral": {
                    "volumeClaimTemplate": {
                        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
                    }
                },
            },
        ]
    ),
    "mount": mount(subPath="x/..y", readOnly=True),
    "mount of a variable": mount(subPathExpr="$(A)/b"),
    "mount read-only below": mount(recursiveReadOnly="Enabled", readOnly=True),
    **{
        f"variable of {field}": env(fieldRef={"fieldPath": field})
        for field in ("metadata.labels['a.b/c']", "metadata.uid", "spec.nodeName", "status.hostIP", "status.podIPs")
    },
    "variable of a limit": env(resourceFieldRef={"resource": "limits.memory", "divisor": "1Mi"}),
    "variable of a ConfigMap": env(configMapKeyRef={"name": "a", "key": "b.c", "optional": True}),
    "variables": pod(envFrom=[{"prefix": "A_", "secretRef": {"name": "a"}}]),
    "empty value": sidecar(env=[{"name": "A", "value": ""}]),
    "sidecar": sidecar(
        livenessProbe=EXEC | {"successThreshold": 1},
        readinessProbe={"httpGet": {"port": "http", "path": "/"}, "successThreshold": 3},
        startupProbe={"grpc": {"port": 9}},
        lifecycle={"preStop": {"sleep": {"seconds": 3}}},
        ports=[{"containerPort": 9, "name": "http"}, {"containerPort": 9, "protocol": "UDP"}],
        volumeMounts=[{"name": "v", "mountPath": "/a"}],
        resources={"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}},
        securityContext={"runAsUser": 7, "capabilities": {"add": ["NET_ADMIN"]}},
    ),
    "init container": init(command=["a"], volumeMounts=[{"name": "v", "mountPath": "/a"}]),
    "capabilities twice": pod(
        containerSecurityContext={
            "runAsUser": 0,
            "runAsNonRoot": False,
            "capabilities": {"add": ["IPC_LOCK", "IPC_LOCK"]},
        }
    ),
    "capability of files": pod(
        containerSecurityContext={"allowPrivilegeEscalation": True, "capabilities": {"add": ["IPC_LOCK"]}}
    ),
    "capability of a user of the platform": pod(
        userAndGroup="Platform", containerSecurityContext={"capabilities": {"add": ["IPC_LOCK"]}}
    ),
    "no capability": pod(containerSecurityContext={"capabilities": {"add": []}}),
    "profiles": pod(
        securityContext={
            "seccompProfile": {"type": "Localhost", "localhostProfile": "x.json"},
            "appArmorProfile": {"type": "RuntimeDefault"},
            "sysctls": [{"name": "net.core.somaxconn", "value": "1"}],
        }
    ),
    "DNS": pod(
        dnsConfig={
            "nameservers": ["1.1.1.1", "2001:db8::1", "::1"],
            "searches": ["a.b", "_x.y", "."],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
        }
    ),
    "alias": pod(hostAliases=[{"ip": "10.0.0.1", "hostnames": ["a", "b.c-d"]}, {"ip": "::1", "hostnames": ["e"]}]),
    "spread": spread(minDomains=2, labelSelector={"matchLabels": {"a": ""}}),
    "selector": spread(
        labelSelector={"matchExpressions": [{"key": "x.y/a", "operator": "NotIn", "values": ["", "b"]}]}
    ),
    "node terms": affinity(
        "nodeAffinity",
        "required",
        {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a.b/c", "operator": "In", "values": ["x", ""]}]},
                {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["3"]}]},
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1.example.com"]}]},
            ]
        },
    ),
    "weights": preferred(100),
    "pod term": pod_term(namespaceSelector={"matchLabels": {"a": "b"}}),
}
"""Kubernetes takes it, and so must the contract."""

LATER: dict[str, tuple[Spec, str]] = {
    "part of a huge page": (resources(cpu="1", limits={"hugepages-2Mi": "3Mi"}), "spec.resources"),
    "sysctl of the node's network": (
        pod(hostNetwork=True, securityContext={"sysctls": [{"name": "net.x", "value": "1"}]}),
        "spec.pod.securityContext.sysctls[0].name",
    ),
    "node's unknown field": (
        node_term("matchFields", operator="In", values=["a"]),
        "spec.pod.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
        ".matchFields[0].key",
    ),
    "mount that reaches the node": (mount(mountPropagation="Bidirectional"), "spec.pod.volumeMounts"),
    "variable of all labels": (env(fieldRef={"fieldPath": "metadata.labels"}), "spec.pod.env"),
    "port's name with two dashes": (
        sidecar(ports=[{"containerPort": 1, "name": "a--b"}]),
        "spec.pod.initContainers[0].ports[0].name",
    ),
}
"""The contract takes it, Kubernetes refuses the pod; with the field that the user corrects."""
