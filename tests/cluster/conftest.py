"""The Kubernetes cluster that the tests of this folder run on, with Hone installed from its chart.

By default a local one is brought up (Linux, root and Go needed). With HONE_TEST_KUBECONFIG and HONE_TEST_REGISTRY
the tests use that cluster, whose nodes must be able to pull from that registry.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "tests/cluster/local"
SYSTEM = "hone-system"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}

Object = dict[str, Any]


def run(*command: str | Path, env: dict[str, str] | None = None, stdin: str | None = None, timeout: float = 120) -> str:
    """What the command prints on standard output; its standard error is in the failure when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=env, input=stdin, timeout=timeout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}".strip())
    return done.stdout


@dataclass(frozen=True)
class Cluster:
    """kubectl on one cluster, and waiting for what it shows."""

    env: dict[str, str]
    registry: str

    def kubectl(
        self, *arguments: str, namespace: str | None = None, stdin: str | None = None, timeout: float = 120
    ) -> str:
        """What kubectl prints; AssertionError with its words when it fails."""
        scope = ["--namespace", namespace] if namespace else []
        return run("kubectl", *scope, *arguments, env=self.env, stdin=stdin, timeout=timeout)

    def apply(self, *objects: Object, namespace: str | None = None) -> None:
        self.kubectl("apply", "-f", "-", namespace=namespace, stdin=json.dumps(as_list(objects)))

    def create(self, *objects: Object, namespace: str | None = None) -> None:
        self.kubectl("create", "-f", "-", namespace=namespace, stdin=json.dumps(as_list(objects)))

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """The object, or None when there is none."""
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
        timeout: float = 60,
        unless: Callable[[Object], object] = lambda _: False,
    ) -> Object:
        """Poll until the condition holds for the object, and return it.

        Fails after `timeout` seconds, or at once when `unless` holds, with all that helps to see why.
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

    def wait_gone(self, kind: str, name: str, namespace: str | None = None, timeout: float = 60) -> None:
        """Wait until there is no such object."""
        self.kubectl(
            "wait", "--for=delete", f"{kind}/{name}", f"--timeout={timeout}s", namespace=namespace, timeout=timeout + 30
        )

    def dump(self, kind: str, name: str, namespace: str | None) -> str:
        """The object, and the events, pods and last log lines of its namespace and of Hone's."""
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


def condition(kind: str, status: str = "True") -> Callable[[Object], bool]:
    """A test for a condition in an object's status."""

    def holds(found: Object) -> bool:
        conditions = found.get("status", {}).get("conditions", [])
        return any(each["type"] == kind and each["status"] == status for each in conditions)

    return holds


def not_run(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"cluster tests must run under CI: {reason}")
    pytest.skip(f"NOT RUN: {reason}")


def lacking() -> str | None:
    """What keeps this machine from running the local cluster."""
    if not shutil.which("apt-get"):
        return "the local cluster needs Debian"
    if os.geteuid() != 0:
        return "the local cluster needs root"
    if not shutil.which("go"):
        return "the local cluster is built with Go, and there is no go on the PATH"
    return None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster. The local one stays up for the next run, except under CI."""
    theirs, registry = os.environ.get("HONE_TEST_KUBECONFIG"), os.environ.get("HONE_TEST_REGISTRY")
    if theirs:
        if not registry:
            pytest.fail(
                "HONE_TEST_KUBECONFIG is set, so HONE_TEST_REGISTRY must name a registry that its nodes can pull from"
            )
        yield Cluster({**os.environ, "KUBECONFIG": theirs}, registry)
        return
    if reason := lacking() or ("HONE_TEST_REGISTRY is set without HONE_TEST_KUBECONFIG" if registry else None):
        not_run(f"{reason}; or set HONE_TEST_KUBECONFIG and HONE_TEST_REGISTRY")
    run(LOCAL / "cluster", "up", timeout=2400)
    exports = run("bash", "-c", 'eval "$("$0" env)" && printf "%s\\n%s" "$KUBECONFIG" "$PATH"', LOCAL / "cluster")
    kubeconfig, path = exports.split("\n")
    yield Cluster({**os.environ, "KUBECONFIG": kubeconfig, "PATH": path}, "127.0.0.1:5000")
    if os.environ.get("CI") == "true":
        run(LOCAL / "cluster", "down")


@dataclass(frozen=True)
class Images:
    operator: str
    runtime: str


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> Images:
    """Hone's images of the present sources, in the cluster's registry."""
    printed = run(LOCAL / "images", "build", env={**cluster.env, "HONE_TEST_REGISTRY": cluster.registry}, timeout=1800)
    operator, runtime = printed.splitlines()[-2:]
    return Images(operator, runtime)


@pytest.fixture(scope="session")
def hone(cluster: Cluster, images: Images) -> Iterator[Cluster]:
    """The cluster with Hone installed from its chart, as a user would do it."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": RESTRICTED}})
    try:
        helm = ["helm", "upgrade", "--install", "hone", f"{ROOT}/charts/hone", "--namespace", SYSTEM]
        values = [f"operator.image={images.operator}", f"runtime.image={images.runtime}"]
        run(*helm, "--set-string", ",".join(values), "--wait", "--timeout=180s", env=cluster.env, timeout=240)
    except AssertionError as error:
        pytest.fail(f"{error}\n{cluster.dump('deployments', '', SYSTEM)}")
    yield cluster
    if os.environ.get("HONE_TEST_KUBECONFIG"):
        run("helm", "uninstall", "hone", "--namespace", SYSTEM, "--wait", env=cluster.env, timeout=240)


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace at the restricted Pod Security level; it goes away after the test."""
    slug = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:40].strip("-")
    name = f"{slug}-{os.urandom(3).hex()}"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
