"""The rights that the chart gives to the operator and its users, on an API server with RBAC."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import ROOT, ApiServer, api_server, operator, processes
from until import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

Object = dict[str, Any]
SYSTEM = "hone-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:hone-operator"
# alice has the ClusterRole edit in team-a, bob may make Hone's objects there and nothing else. carol may make these,
# and what serves a model without adapters.
ALICE, BOB, CAROL = "alice", "bob", "carol"
USERS = {
    ACCOUNT: ("system:serviceaccounts", f"system:serviceaccounts:{SYSTEM}", "system:authenticated"),
    ALICE: ("system:authenticated",),
    BOB: ("system:authenticated",),
    CAROL: ("system:authenticated",),
}
SPACES = ("team-a", "team-b", "team-c")
JOB = {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}, "resources": {"gpus": 0}}
SERVICE = {"model": {"name": "example/model"}, "resources": {"gpus": 0}, "replicas": 2}


@dataclass
class Space:
    """kubectl as any user of an API server."""

    server: ApiServer

    def kubectl(self, *arguments: str, user: str = "admin", stdin: str | None = None) -> tuple[bool, str]:
        """Run kubectl. Return whether it succeeded, and its output."""
        command = [self.server.programs / "kubectl", "--kubeconfig", self.server.kubeconfig_of(user), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode == 0, done.stdout + done.stderr

    def create(self, user: str, kind: str, name: str, namespace: str, spec: Object) -> tuple[bool, str]:
        body = {"apiVersion": "hone.dev/v1alpha1", "kind": kind, "spec": spec}
        body["metadata"] = {"name": name, "namespace": namespace}
        return self.kubectl("create", "-f", "-", user=user, stdin=json.dumps(body))

    def install(self, *values: str) -> list[Object]:
        """Apply the rendered chart without the operator's Deployment, of which only the arguments are used."""
        command = [self.server.programs / "helm", "template", "hone", ROOT / "charts/hone", "--namespace", SYSTEM]
        command += ["--no-hooks"]
        flags = [word for value in values for word in ("--set", value)]
        rendered = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60, check=True).stdout
        objects = [found for found in yaml.safe_load_all(rendered) if found]
        kept = [found for found in objects if found["kind"] != "Deployment"]
        worked, said = self.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(kept))
        assert worked, said
        return objects

    def remove(self, objects: list[Object]) -> None:
        gone = [found for found in objects if found["kind"] not in ("Deployment", "CustomResourceDefinition")]
        self.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=yaml.safe_dump_all(gone))


@pytest.fixture(scope="module")
def space(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    with api_server(tmp_path_factory.mktemp("rights"), users=USERS) as server:
        found = Space(server)
        for name in (SYSTEM, *SPACES):
            assert found.kubectl("create", "namespace", name)[0]
        # This controller adds labelled roles to the ClusterRoles edit, admin and view.
        manager: list[object] = [server.programs / "kube-controller-manager", "--leader-elect=false"]
        manager += ["--kubeconfig", server.kubeconfig, "--secure-port=0"]
        manager += ["--controllers=clusterrole-aggregation-controller"]
        with (server.folder / "manager.log").open("w") as log, processes([manager], dict(os.environ), log.fileno()):
            yield found


@pytest.fixture(scope="module")
def everywhere(space: Space) -> Iterator[Space]:
    """Yield an installation for all namespaces, with users who have rights in team-a."""
    objects = space.install()
    space.kubectl("create", "rolebinding", "alice", "--clusterrole=edit", f"--user={ALICE}", "--namespace=team-a")
    for kinds in ("finetunejobs.hone.dev,inferenceservices.hone.dev",):
        verbs = "--verb=get,list,create,update,patch"
        space.kubectl("create", "role", "only-hone", verbs, f"--resource={kinds}", "--namespace=team-a")
    space.kubectl("create", "rolebinding", "bob", "--role=only-hone", f"--user={BOB}", "--namespace=team-a")
    space.kubectl("create", "rolebinding", "carol", "--role=only-hone", f"--user={CAROL}", "--namespace=team-a")
    kinds = "deployments.apps,services,poddisruptionbudgets.policy"
    space.kubectl("create", "role", "serve", "--verb=create", f"--resource={kinds}", "--namespace=team-a")
    space.kubectl("create", "rolebinding", "carols", "--role=serve", f"--user={CAROL}", "--namespace=team-a")
    wait_until(lambda: space.create(ALICE, "FineTuneJob", "first", "team-a", JOB)[0])
    # Rights and policies, one for each kind, take effect some moments after their creation.
    wait_until(lambda: space.kubectl("auth", "can-i", "create", kinds.rpartition(",")[2], "-nteam-a", user=CAROL)[0])
    for kind, spec in (("FineTuneJob", JOB), ("InferenceService", SERVICE)):
        wait_until(lambda kind=kind, spec=spec: "bob may not" in try_to_create(space, kind, spec))  # type: ignore[misc]
    yield space
    space.remove(objects)


def try_to_create(space: Space, kind: str, spec: Object) -> str:
    """Return the API server's answer to an object of bob."""
    return space.create(BOB, kind, f"b{time.monotonic_ns()}", "team-a", spec)[1]


def test_the_role_edit_allows_hone_only_in_the_own_namespace(everywhere: Space) -> None:
    assert everywhere.create(ALICE, "FineTuneJob", "mine", "team-a", JOB)[0]
    assert everywhere.create(ALICE, "InferenceService", "mine", "team-a", SERVICE)[0]
    worked, said = everywhere.create(ALICE, "FineTuneJob", "theirs", "team-b", JOB)
    assert not worked
    assert 'cannot create resource "finetunejobs"' in said


@pytest.mark.parametrize(
    ("kind", "spec", "right"),
    [("FineTuneJob", JOB, "jobs.batch"), ("InferenceService", SERVICE, "deployments.apps")],
)
def test_nobody_gets_pods_through_hone_that_they_could_not_create(
    everywhere: Space, kind: str, spec: Object, right: str
) -> None:
    worked, said = everywhere.create(BOB, kind, "through-hone", "team-a", spec)
    assert not worked
    assert f"bob may not create {right} in namespace team-a" in said
    assert everywhere.create(ALICE, kind, f"alices-{kind.lower()}", "team-a", spec)[0]
    patch = json.dumps({"spec": {"pod": {"serviceAccountName": "another"}}})
    target = (f"{kind.lower()}s.hone.dev", f"alices-{kind.lower()}", "--namespace=team-a")
    worked, said = everywhere.kubectl("patch", *target, "--type=merge", "--patch", patch, user=BOB)
    assert not worked
    assert f"bob may not create {right}" in said
    assert everywhere.kubectl("label", *target, "a=b", user=BOB)[0]
    # These are passed on to Jobs.
    for change in ("label", "annotate"):
        assert everywhere.kubectl(change, *target, "example.com/a=b", user=BOB)[0]
        worked, said = everywhere.kubectl(change, *target, "kueue.x-k8s.io/queue-name=theirs", user=BOB)
        assert not worked
        assert f"bob may not create {right}" in said
        assert everywhere.kubectl(change, *target, "kueue.x-k8s.io/queue-name=mine", user=ALICE)[0]
        worked, said = everywhere.kubectl(change, *target, "kueue.x-k8s.io/queue-name-", user=BOB)
        assert not worked


def test_a_service_of_an_adapter_asks_for_its_config_map(everywhere: Space) -> None:
    assert everywhere.create(CAROL, "InferenceService", "carols", "team-a", SERVICE)[0]
    faq = {"fineTuneJob": {"name": "faq"}}
    for more in ({"model": faq}, {"adapters": [{"name": "a", **faq}]}):
        worked, said = everywhere.create(CAROL, "InferenceService", "with-adapter", "team-a", SERVICE | more)
        assert not worked
        assert "carol may not create configmaps in namespace team-a" in said


def settle(space: Space, log: Path, namespace: str, name: str) -> None:
    """Check that both kinds get their children and a status, and that nothing was refused."""
    assert space.create("admin", "FineTuneJob", name, namespace, JOB)[0]
    assert space.create("admin", "InferenceService", f"{name}-service", namespace, SERVICE)[0]
    wait_until(lambda: space.kubectl("get", "job", f"{name}-train", "--namespace", namespace)[0])
    wait_until(
        lambda: space.kubectl(
            "get", "deployment,service,poddisruptionbudget", f"{name}-service", "--namespace", namespace
        )[0]
    )
    wait_until(
        lambda: "Accepted" in space.kubectl("get", "finetunejob", name, "--output=yaml", "--namespace", namespace)[1]
    )
    time.sleep(1)
    for word in ("Traceback", "forbidden", "Forbidden"):
        assert word not in log.read_text(), log.read_text()[-2000:]


def test_the_cluster_wide_roles_suffice(everywhere: Space) -> None:
    log = everywhere.server.folder / "wide.log"
    kubeconfig = everywhere.server.kubeconfig_of(ACCOUNT)
    with operator(kubeconfig, "--lease-namespace", SYSTEM, log=log):
        settle(everywhere, log, "team-b", "wide")


def test_roles_in_two_namespaces_suffice_for_these(space: Space, everywhere: Space) -> None:
    objects = space.install("watchNamespaces={team-a,team-b}")
    assert not [found for found in objects if found["kind"].startswith("ClusterRole")]
    for kind in ("clusterrole", "clusterrolebinding"):
        space.kubectl("delete", kind, f"{SYSTEM}-hone-operator")
    (deployment,) = (found for found in objects if found["kind"] == "Deployment")
    given = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    arguments = [each for each in given if not each.startswith("--listen")]
    assert "--namespace=team-a" in arguments
    log = space.server.folder / "narrow.log"
    kubeconfig = space.server.kubeconfig_of(ACCOUNT)
    try:
        with operator(kubeconfig, "--lease-namespace", SYSTEM, *arguments, log=log):
            settle(space, log, "team-a", "narrow")
            assert space.create("admin", "FineTuneJob", "outside", "team-c", JOB)[0]
            time.sleep(2)
            assert not space.kubectl("get", "job", "outside-train", "--namespace=team-c")[0]
    finally:
        space.remove(objects)
