"""The Kubernetes cluster that the tests of this folder run on, with Hone installed from its chart.

By default a local cluster is started (this needs Linux, root and Go). With HONE_TEST_KUBECONFIG and
HONE_TEST_REGISTRY the tests use that cluster, whose nodes must be able to pull from that registry.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves it out

from apiserver import ApiServer, api_server, programs
from kube import COLLECTED, RESTRICTED, SYSTEM, Cluster, Images, run

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "tests/cluster/local"


def report_not_run(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"cluster tests must run under CI: {reason}")
    pytest.skip(f"NOT RUN: {reason}")


def find_missing_requirement() -> str | None:
    """Return why this machine can't run the local cluster; None where it can."""
    if not shutil.which("apt-get"):
        return "the local cluster needs Debian"
    if os.geteuid() != 0:
        return "the local cluster needs root"
    if not shutil.which("go"):
        return "the local cluster is built with Go, and there is no go on the PATH"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the cluster: the others can run at the same time, in another process.

    The test of the operator's rights is the last one: it judges by what all others made the operator ask for.
    """
    items.sort(key=lambda item: item.path.name == "test_rbac_least_privilege.py")
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.needs_cluster)
    if items:
        items[0].session.stash[COLLECTED] = list(items)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Yield a running cluster. The local one stays up for the next run, except under CI."""
    theirs, registry = os.environ.get("HONE_TEST_KUBECONFIG"), os.environ.get("HONE_TEST_REGISTRY")
    if theirs:
        if not registry:
            pytest.fail(
                "HONE_TEST_KUBECONFIG is set, so HONE_TEST_REGISTRY must name a registry that its nodes can pull from"
            )
        yield Cluster({**os.environ, "KUBECONFIG": theirs}, registry)
        return
    if reason := find_missing_requirement() or (
        "HONE_TEST_REGISTRY is set without HONE_TEST_KUBECONFIG" if registry else None
    ):
        report_not_run(f"{reason}; or set HONE_TEST_KUBECONFIG and HONE_TEST_REGISTRY")
    run(LOCAL / "cluster", "up", timeout=2400)
    exports = run("bash", "-c", 'eval "$("$0" env)" && printf "%s\\n%s" "$KUBECONFIG" "$PATH"', LOCAL / "cluster")
    kubeconfig, path = exports.split("\n")
    yield Cluster({**os.environ, "KUBECONFIG": kubeconfig, "PATH": path}, "127.0.0.1:5000")
    if os.environ.get("CI") == "true":
        run(LOCAL / "cluster", "down")


@pytest.fixture(scope="module")
def two_nodes(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yield the names of two nodes that take pods. A test may drain the second."""
    local = not os.environ.get("HONE_TEST_KUBECONFIG")
    if local:
        run(LOCAL / "cluster", "join", timeout=240)
    names = [node["metadata"]["name"] for node in cluster.list("nodes") if not node["spec"].get("unschedulable")]
    if len(names) < 2:
        report_not_run("two nodes are needed; the local cluster gets its second by: tests/cluster/local/cluster join")
    yield names[0], names[1]
    if local:
        run(LOCAL / "cluster", "leave")


@pytest.fixture(scope="session")
def control_plane() -> None:
    """Require the programs that `apiserver.api_server` runs; build them if there are none."""
    if programs() is not None:
        return
    if reason := find_missing_requirement():
        report_not_run(reason)
    run(LOCAL / "cluster", "build", timeout=2400)


@pytest.fixture(scope="session")
def crd_server(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Yield an API server with Hone's definitions and no operator.

    Several files of tests share it. They create nothing that another would notice: they use `dry_run`, or names that
    start with the name of their file.
    """
    with api_server(tmp_path_factory.mktemp("crds")) as server:
        server.install_crds()
        yield server


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> Images:
    """Return Hone's images of the present sources, in the cluster's registry."""
    printed = run(LOCAL / "images", "build", env={**cluster.env, "HONE_TEST_REGISTRY": cluster.registry}, timeout=1800)
    operator, runtime = printed.splitlines()[-2:]
    return Images(operator, runtime)


@pytest.fixture(scope="session")
def hone(cluster: Cluster, images: Images) -> Iterator[Cluster]:
    """Yield the cluster with Hone installed from its chart, as a user would install it."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": RESTRICTED}})
    # An earlier installation leaves its Lease, which helm does not know, and which its operator would write again.
    gone = ("--ignore-not-found", "--cascade=foreground", "--wait")
    cluster.kubectl("delete", "deployment", "hone-operator", *gone, namespace=SYSTEM)
    cluster.kubectl("delete", "lease", "hone-operator", "--ignore-not-found", namespace=SYSTEM)
    try:
        helm = ["helm", "upgrade", "--install", "hone", f"{ROOT}/charts/hone", "--namespace", SYSTEM]
        values = [f"operator.image={images.operator}", f"runtime.image={images.runtime}"]
        # The local node's GPUs are fake; pods that request them compute on the CPU.
        values = ["--set-string", ",".join(values), "--set", "runtime.requireGpus=false"]
        run(*helm, *values, "--wait", "--timeout=300s", env=cluster.env, timeout=330)
    except AssertionError as error:
        pytest.fail(f"{error}\n{cluster.dump('deployment', 'hone-operator', SYSTEM)}")
    yield cluster
    if os.environ.get("HONE_TEST_KUBECONFIG"):
        run("helm", "uninstall", "hone", "--namespace", SYSTEM, "--wait", env=cluster.env, timeout=240)


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield a new namespace for the test."""
    slug = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:40].strip("-")
    with cluster.fresh_namespace(slug) as name:
        yield name
