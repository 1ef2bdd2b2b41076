"""Settings of spec.pod, and the strictest Pod Security level that allows each.

test_pod_levels.py compares them with Hone's judgement, and tests/cluster/pods/test_pod_security.py with that of the
API server.
"""

from typing import Any

Object = dict[str, Any]


def of_pod(**context: Any) -> Object:
    return {"securityContext": context}


def of_container(**context: Any) -> Object:
    return {"containerSecurityContext": context}


def sidecar(**container: Any) -> Object:
    return {"initContainers": [{"name": "s", "image": "s:1", "restartPolicy": "Always", **container}]}


def volume(**source: Any) -> Object:
    return {"volumes": [{"name": "v", **source}]}


ROOT: Object = {"runAsUser": 0, "runAsNonRoot": False}
RESTRICTED: dict[str, Object] = {
    "nothing": {},
    "a render group": {"supplementalGroups": [109]},
    "another user": of_pod(runAsUser=1000, runAsGroup=1000, fsGroup=1000),
    "the platform's user": {"userAndGroup": "Platform"},
    "a port below 1024": of_container(
        allowPrivilegeEscalation=False, runAsUser=1000, capabilities={"add": ["NET_BIND_SERVICE"]}
    ),
    "a writable root": of_container(readOnlyRootFilesystem=False),
    "a profile of the node": of_pod(seccompProfile={"type": "Localhost", "localhostProfile": "x.json"}),
    "a type of containers": of_pod(seLinuxOptions={"type": "container_t", "level": "s0:c1"}),
    "a safe sysctl": of_pod(sysctls=[{"name": "net.ipv4.tcp_keepalive_time", "value": "60"}]),
    "a volume of an image": volume(image={"reference": "a:1"}),
    "volumes": volume(projected={"sources": [{"configMap": {"name": "a"}}]}),
    "a volume without source": volume(),
    "a sidecar": sidecar(ports=[{"containerPort": 9}], livenessProbe={"httpGet": {"port": 9}}),
    "a profile by annotation": {
        "annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "runtime/default"}
    },
}
BASELINE: dict[str, Object] = {
    "root": of_container(**ROOT),
    "root of the pod": of_pod(**ROOT),
    "any user": of_pod(runAsNonRoot=False),
    "escalation": of_container(allowPrivilegeEscalation=True),
    "a capability of root": of_container(**ROOT, capabilities={"add": ["CHOWN"]}),
    "capabilities that are kept": of_container(capabilities={"drop": ["NET_RAW"]}),
    "NFS": volume(nfs={"server": "s", "path": "/x"}),
    "a sidecar of root": sidecar(securityContext=ROOT),
}
PRIVILEGED: dict[str, Object] = {
    "the node's network": {"hostNetwork": True},
    "locked memory": of_container(**ROOT, capabilities={"add": ["IPC_LOCK"]}),
    "privileged": of_container(privileged=True),
    "administration": of_container(**ROOT, capabilities={"add": ["SYS_ADMIN"]}),
    "no seccomp": of_pod(seccompProfile={"type": "Unconfined"}),
    "no AppArmor": of_container(appArmorProfile={"type": "Unconfined"}),
    "no AppArmor by annotation": {
        "annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}
    },
    "another type": of_pod(seLinuxOptions={"type": "spc_t"}),
    "another SELinux user": of_container(seLinuxOptions={"user": "system_u"}),
    "a sysctl": of_pod(sysctls=[{"name": "net.core.somaxconn", "value": "1"}]),
    "a safe sysctl with slashes": of_pod(sysctls=[{"name": "net/ipv4/tcp_keepalive_time", "value": "60"}]),
    "a folder of the node": volume(hostPath={"path": "/x"}),
    "a port of the node": sidecar(ports=[{"containerPort": 9, "hostPort": 9}]),
    "a probe of another host": sidecar(livenessProbe={"tcpSocket": {"port": 9, "host": "10.1.1.1"}}),
    "a hook of another host": sidecar(lifecycle={"preStop": {"httpGet": {"port": 9, "host": "example.com"}}}),
    "a privileged sidecar": sidecar(securityContext={"privileged": True}),
}
CASES = [
    *((name, pod, "restricted") for name, pod in RESTRICTED.items()),
    *((name, pod, "baseline") for name, pod in BASELINE.items()),
    *((name, pod, "privileged") for name, pod in PRIVILEGED.items()),
]
