"""A server for tests in a pod of their namespace: a program of this machine, such as an S3 server or a registry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kube import Cluster, Images, condition, pod

Object = dict[str, Any]
PROGRAM = "/data/program"
# The program is copied into the running pod, so the pod waits until it is complete.
_WAIT = "until test -e /data/complete; do sleep 0.2; done\n"


def secret(name: str, data: dict[str, str]) -> Object:
    """Return a Secret."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def run_server(
    hone: Cluster,
    images: Images,
    namespace: str,
    name: str,
    port: int,
    program: Path,
    script: str,
    variables: Mapping[str, str],
) -> None:
    """Run a shell script that starts PROGRAM, behind a Service of this name, and wait until it listens."""
    spec = {"selector": {"app": name}, "ports": [{"port": port}]}
    hone.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}, namespace=namespace)
    # Kubernetes expands $(NAME) in values, and two dollar signs mean one.
    environment = [{"name": key, "value": value.replace("$", "$$")} for key, value in variables.items()]
    probe = {"readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1}, "env": environment}
    server = pod(name, images.operator, "sh", "-euc", _WAIT + script, **probe)
    server["spec"]["volumes"].append({"name": "data", "emptyDir": {}})
    server["spec"]["containers"][0]["volumeMounts"].append({"name": "data", "mountPath": "/data"})
    hone.create(server, namespace=namespace)
    hone.wait("pod", name, lambda found: found["status"].get("phase") == "Running", namespace)
    hone.kubectl("cp", "--no-preserve", str(program), f"{namespace}/{name}:{PROGRAM}")
    complete = f"chmod +x {PROGRAM} && touch /data/complete"
    hone.kubectl("exec", name, "--", "sh", "-c", complete, namespace=namespace)
    hone.wait("pod", name, condition("Ready"), namespace)
