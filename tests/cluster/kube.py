"""Helpers for tests on a cluster: kubectl, waiting for objects, and pods."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SYSTEM = "hone-system"
# The tests that were collected, before some are deselected.
COLLECTED = pytest.StashKey[list[pytest.Item]]()
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
# For clients in the cluster. The Service's address leads to a pod only some moments after the pod is ready.
CONNECT = """
import socket, time
def connect(host, port):
    end = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection((host, port), 1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
"""

Object = dict[str, Any]


def run(*command: str | Path, env: dict[str, str] | None = None, stdin: str | None = None, timeout: float = 120) -> str:
    """Run a command and return its standard output. A failure contains its standard error."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=env, input=stdin, timeout=timeout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}".strip())
    return done.stdout


@dataclass(frozen=True)
class Images:
    """References of Hone's images in the cluster's registry."""

    operator: str
    runtime: str


@dataclass(frozen=True)
class Cluster:
    """kubectl on one cluster, with waiting for objects."""

    env: dict[str, str]
    registry: str

    def kubectl(
        self, *arguments: str, namespace: str | None = None, stdin: str | None = None, timeout: float = 120
    ) -> str:
        """Run kubectl and return its output. Raises AssertionError with its error message when it fails."""
        scope = ["--namespace", namespace] if namespace else []
        return run("kubectl", *scope, *arguments, env=self.env, stdin=stdin, timeout=timeout)

    def apply(self, *objects: Object, namespace: str | None = None) -> None:
        self.kubectl("apply", "-f", "-", namespace=namespace, stdin=json.dumps(as_list(objects)))

    def create(self, *objects: Object, namespace: str | None = None) -> None:
        self.kubectl("create", "-f", "-", namespace=namespace, stdin=json.dumps(as_list(objects)))

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return the object, or None when there is none."""
        found = self.kubectl("get", kind, name, "--ignore-not-found", "--output", "json", namespace=namespace)
        return json.loads(found) if found else None

    def list(self, kind: str, namespace: str | None = None, selector: str = "") -> list[Object]:
        found = self.kubectl("get", kind, "--selector", selector, "--output", "json", namespace=namespace)
        return list(json.loads(found)["items"])

    def wait(
        self,
        kind: str,
        name: str,
        condition: Callable[[Object], object],
        namespace: str | None = None,
        *,
        timeout: float = 180,
        unless: Callable[[Object], object] = lambda _: False,
    ) -> Object:
        """Poll until the condition holds for the object, and return it.

        Fails after `timeout` seconds, or at once when `unless` holds, with the state of the namespace.
        """
        end = time.monotonic() + timeout
        while True:
            found = self.get(kind, name, namespace)
            if found and condition(found):
                return found
            if found and unless(found):
                pytest.fail(
                    f"{kind}/{name} can no longer become what was waited for\n{self.dump(kind, name, namespace)}"
                )
            if time.monotonic() > end:
                pytest.fail(f"gave up on {kind}/{name} after {timeout:.0f} s\n{self.dump(kind, name, namespace)}")
            time.sleep(0.3)

    def run_pod(self, spec: Object, namespace: str, timeout: float = 240) -> str:
        """Run the pod to its success and return its log."""
        name = spec["metadata"]["name"]
        self.create(spec, namespace=namespace)
        self.wait("pod", name, phase("Succeeded"), namespace, timeout=timeout, unless=phase("Failed"))
        return self.kubectl("logs", name, namespace=namespace)

    @contextmanager
    def fresh_namespace(self, prefix: str) -> Iterator[str]:
        """Create a namespace at the restricted Pod Security level, until the context ends."""
        name = f"{prefix}-{os.urandom(3).hex()}"
        self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})
        yield name
        self.kubectl("delete", "namespace", name, "--wait=false")

    def wait_gone(self, kind: str, name: str, namespace: str | None = None, timeout: float = 180) -> None:
        """Wait until there is no such object."""
        self.kubectl(
            "wait", "--for=delete", f"{kind}/{name}", f"--timeout={timeout}s", namespace=namespace, timeout=timeout + 30
        )

    def wait_pods_gone(self, selector: str, namespace: str, timeout: float = 240) -> None:
        """Wait until no pod has these labels."""
        arguments = ("--for=delete", "pod", "--selector", selector, f"--timeout={timeout}s")
        self.kubectl("wait", *arguments, namespace=namespace, timeout=timeout + 30)

    def dump(self, kind: str, name: str, namespace: str | None) -> str:
        """Return the object, and the events, pods and last log lines of its namespace and of Hone's."""
        parts = [self._try("get", kind, name, "--output", "yaml", namespace=namespace)]
        for space in dict.fromkeys([namespace or "default", SYSTEM]):
            parts += [
                f"--- {space}",
                self._try("get", "pods,jobs,persistentvolumeclaims", "--output", "wide", namespace=space),
                self._try("get", "events", "--sort-by", ".lastTimestamp", namespace=space),
            ]
            for pod in self._try("get", "pods", "--output", "name", namespace=space).split():
                parts += [
                    f"--- log of {space} {pod}",
                    self._try("logs", pod, "--all-containers", "--tail=40", namespace=space),
                ]
        return "\n".join(parts)

    def _try(self, *arguments: str, namespace: str | None) -> str:
        try:
            return self.kubectl(*arguments, namespace=namespace)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return str(error)


def as_list(objects: tuple[Object, ...]) -> Object:
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}


def phase(*phases: str) -> Callable[[Object], bool]:
    """Return a test for a pod's or a claim's phase."""
    return lambda found: found.get("status", {}).get("phase") in phases


def condition(kind: str, status: str = "True") -> Callable[[Object], bool]:
    """Return a test for a condition in an object's status."""

    def holds(found: Object) -> bool:
        conditions = found.get("status", {}).get("conditions", [])
        return any(each["type"] == kind and each["status"] == status for each in conditions)

    return holds


def pod(name: str, image: str, *command: str, claims: dict[str, str] | None = None, **container: Any) -> Object:
    """Return a pod at the restricted level with a read-only root and a writable /tmp. `claims`: claim to mount path."""
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {}}]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    for claim, path in (claims or {}).items():
        volumes.append({"name": claim, "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": claim, "mountPath": path})
    user = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": list(command),
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": mounts,
                    **container,
                }
            ],
            "volumes": volumes,
        },
    }


def chart(folder: Path, *contents: Object) -> str:
    """Write a Helm chart of these objects into a new folder, which has the chart's name."""
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text(f"apiVersion: v2\nname: {folder.name}\nversion: 0.1.0\n")
    documents = (json.dumps(each).replace("{{", '{{ "{{" }}') for each in contents)
    (folder / "templates/objects.yaml").write_text("\n---\n".join(documents))
    return str(folder)


def claim(name: str) -> Object:
    """Return a claim of the default StorageClass that several pods may mount."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
