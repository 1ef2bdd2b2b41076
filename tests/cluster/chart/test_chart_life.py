"""The life of a release on a real API server: upgraded from 0.1.0, uninstalled, installed again.

There is no kubelet: the test itself runs the Job of the uninstallation, as the ServiceAccount that the Job names.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import ROOT, ApiServer, api_server, free_ports, processes
from kube import chart, run
from until import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

Object = dict[str, Any]
SYSTEM, TEAM = "hone-system", "team"
CHART = ROOT / "charts/hone"
PREVIOUS = ROOT / "tests/cluster/previous/0.1.0.yaml"
# carol has the ClusterRole admin in the namespace team; nobody has no rights.
CAROL, NOBODY = "carol", "nobody"
CRDS = ("finetunejobs.hone.dev", "inferenceservices.hone.dev")
BUDGET_LABELS = {"app.kubernetes.io/managed-by": "hone", "hone.dev/inferenceservice": "served"}
TUNING: Object = {
    "apiVersion": "hone.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "tuned", "namespace": TEAM},
    "spec": {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}, "resources": {"gpus": 1}},
}
SERVED: Object = {
    "apiVersion": "hone.dev/v1alpha1",
    "kind": "InferenceService",
    "metadata": {"name": "served", "namespace": TEAM},
    "spec": {"model": {"name": "example/model"}, "resources": {"gpus": 1}, "replicas": 2},
}


def account(namespace: str, name: str) -> str:
    return f"system:serviceaccount:{namespace}:{name}"


def groups(namespace: str) -> tuple[str, ...]:
    return "system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"


@dataclass
class Place:
    """kubectl, helm and the Job of the uninstallation on one API server."""

    server: ApiServer
    # One file per user, written once: helm reads its file while kubectl runs.
    kubeconfigs: dict[str, Path]

    def environment(self, user: str = "admin") -> dict[str, str]:
        path = f"{self.server.programs}:{os.environ['PATH']}"
        return dict(os.environ, KUBECONFIG=str(self.kubeconfigs[user]), PATH=path, PYTHONWARNINGS="ignore")

    def kubectl(self, *arguments: str, user: str = "admin", stdin: str | None = None) -> str:
        return run("kubectl", *arguments, env=self.environment(user), stdin=stdin)

    def names(self, kind: str, namespace: str | None = None) -> set[str]:
        where = ("--namespace", namespace) if namespace else ()
        found = self.kubectl("get", kind, "--output=name", *where)
        return {line.rpartition("/")[2] for line in found.split()}

    def has_discovered(self, *names: str) -> bool:
        """Return whether kubectl finds these kinds, which is some moments after they were established."""
        found = self.kubectl("api-resources", "--api-group=hone.dev", "--output=name", "--cached=false")
        return set(names) <= set(found.split())

    def helm(self, *arguments: object, user: str = "admin") -> str:
        return run("helm", *(str(each) for each in arguments), env=self.environment(user))

    def run_hook(self, command: list[str], user: str, kubeconfig: Path | None = None) -> tuple[int, str]:
        """Run a container's command locally. Return its exit status and its output."""
        words = [sys.executable if word == "python3" else word for word in command]
        env = {**self.environment(user), **({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})}
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout + done.stderr

    def uninstall(self, release: str, namespace: str, user: str = "admin") -> str:
        """Run `helm uninstall`, and its Job as a kubelet would. Return the Job's output."""
        command = ["helm", "uninstall", release, "--namespace", namespace, "--timeout=300s"]
        helm = subprocess.Popen(command, env=self.environment(user), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        name = f"{release}-uninstall"
        begun = time.monotonic()
        while name not in self.names("jobs", namespace):
            assert helm.poll() is None, helm.communicate()[0]
            assert time.monotonic() - begun < 120
        job = json.loads(self.kubectl("get", "job", name, "--namespace", namespace, "--output=json"))
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        user = account(namespace, pod["serviceAccountName"])
        for _ in range(1 + job["spec"]["backoffLimit"]):
            code, said = self.run_hook(container["command"] + container["args"], user)
            # The API server enforces a new role some moments later; a kubelet takes longer to start a pod.
            if code == 0:
                break
            time.sleep(1)
        assert code == 0, said
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))
        condition = {"status": "True", "lastProbeTime": now, "lastTransitionTime": now}
        status = {
            "startTime": job["metadata"]["creationTimestamp"],
            "completionTime": now,
            "succeeded": 1,
            "conditions": [{"type": "SuccessCriteriaMet", **condition}, {"type": "Complete", **condition}],
        }
        patch = ("--type=merge", "--subresource=status", "--patch", json.dumps({"status": status}))
        self.kubectl("patch", "job", name, "--namespace", namespace, *patch)
        printed = helm.communicate(timeout=120)[0].decode()
        assert helm.returncode == 0, printed
        assert name not in self.names("serviceaccounts", namespace)
        return said

    def create_budget(self, name: str, labels: Object, namespace: str = TEAM) -> None:
        body: Object = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "spec": {"maxUnavailable": 0}}
        body["metadata"] = {"name": name, "namespace": namespace, "labels": labels}
        body["spec"]["selector"] = {"matchLabels": {"app": name}}
        self.kubectl("create", "--filename=-", stdin=json.dumps(body))


@pytest.fixture(scope="module")
def server(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    users: dict[str, tuple[str, ...]] = dict.fromkeys((CAROL, NOBODY), ("system:authenticated",))
    for namespace, name in ((SYSTEM, "hone-uninstall"), (TEAM, "hone-uninstall")):
        users[account(namespace, name)] = groups(namespace)
    with api_server(tmp_path_factory.mktemp("life"), users=users) as found:
        place = Place(found, {user: found.kubeconfig_of(user) for user in ("admin", *users)})
        for name in (SYSTEM, TEAM):
            place.kubectl("create", "namespace", name)
        place.kubectl("create", "rolebinding", "carol", "--clusterrole=admin", "--user=carol", "--namespace=team")
        # This controller fills the ClusterRole admin.
        manager: list[object] = [found.programs / "kube-controller-manager", "--leader-elect=false"]
        manager += ["--kubeconfig", found.kubeconfig, "--secure-port=0"]
        manager += ["--controllers=clusterrole-aggregation-controller"]
        with (found.folder / "manager.log").open("w") as log, processes([manager], dict(os.environ), log.fileno()):
            wait_until_may(place, CAROL, "create", "secrets")
            yield place


def wait_until_may(place: Place, user: str, *action: str) -> None:
    """Wait until the API server knows of this right in the namespace team."""
    begun = time.monotonic()
    while True:
        try:
            place.kubectl("auth", "can-i", *action, "--as", user, "--namespace", TEAM)
            return
        except AssertionError:
            assert time.monotonic() - begun < 120, action
            time.sleep(0.3)


@pytest.fixture
def place(server: Place) -> Iterator[Place]:
    """Yield an API server without any object of Hone."""
    yield server
    for found in json.loads(server.helm("list", "--all-namespaces", "--output=json")):
        server.helm("uninstall", found["name"], "--namespace", found["namespace"], "--no-hooks")
    server.kubectl("delete", "crd", "--ignore-not-found", *CRDS)
    server.kubectl("delete", "poddisruptionbudgets", "--all", "--namespace", TEAM)


def install_previous(place: Place, folder: Path) -> None:
    """Install version 0.1.0 by helm, as release hone."""
    objects = [found for found in yaml.safe_load_all(PREVIOUS.read_text()) if found]
    place.helm("install", "hone", chart(folder / "hone", *objects), "--namespace", SYSTEM)
    place.kubectl("wait", "--for=condition=Established", "--timeout=100s", *(f"crd/{name}" for name in CRDS))
    wait_until(lambda: place.has_discovered(*CRDS))


def test_an_upgrade_from_the_previous_version_keeps_objects_and_roles(place: Place, tmp_path: Path) -> None:
    install_previous(place, tmp_path)
    roles = {name for name in place.names("clusterroles") if "hone" in name}
    for body in (TUNING, SERVED):
        place.kubectl("create", "--filename=-", stdin=json.dumps(body))
    place.create_budget("served", BUDGET_LABELS)
    place.create_budget("mine", {"app.kubernetes.io/managed-by": "me"})
    place.create_budget("labelled", {"app.kubernetes.io/managed-by": "hone"})

    notes = place.helm("upgrade", "hone", CHART, "--namespace", SYSTEM)
    assert {name for name in place.names("clusterroles") if "hone" in name} == roles
    for body, kind in ((TUNING, "finetunejob"), (SERVED, "inferenceservice")):
        name = body["metadata"]["name"]
        stored = json.loads(place.kubectl("get", kind, name, "--namespace", TEAM, "--output=json"))
        # A new object is validated in full.
        copy = {**stored, "metadata": {"name": "copy", "namespace": TEAM}}
        copy.pop("status", None)
        place.kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(copy))
        place.kubectl("annotate", kind, name, "a=b", "--namespace", TEAM)

    said = place.uninstall("hone", SYSTEM)
    assert f"Deleted PodDisruptionBudget {TEAM}/served" in said
    assert "PodDisruptionBudgets deleted: 1" in said
    assert place.names("poddisruptionbudgets", TEAM) == {"mine", "labelled"}
    assert place.names("crd") >= set(CRDS)
    assert place.names("finetunejobs", TEAM) == {"tuned"}
    assert place.names("inferenceservices", TEAM) == {"served"}
    assert not [name for name in place.names("clusterroles") if "hone" in name]

    place.helm("install", "hone", CHART, "--namespace", SYSTEM)
    assert "PodDisruptionBudgets deleted: 0" in place.uninstall("hone", SYSTEM)
    # Each command of the notes works as described there.
    commands = [line.split() for line in notes.splitlines() if line.startswith("  kubectl ")]
    assert [words[1] for words in commands] == ["explain", "get", "delete", "delete"]
    for words in commands:
        place.kubectl(*words[1:])
    assert not set(CRDS) & place.names("crd")
    assert place.names("poddisruptionbudgets", TEAM) == {"mine", "labelled"}


def test_the_command_of_an_upgrade_removes_budgets_where_hone_no_longer_watches(place: Place) -> None:
    installed = place.helm("install", "hone", CHART, "--namespace", SYSTEM, "--set=watchNamespaces={team}")
    place.create_budget("served", BUDGET_LABELS)
    place.create_budget("mine", {"app.kubernetes.io/managed-by": "me"})
    notes = place.helm("upgrade", "hone", CHART, "--namespace", SYSTEM, "--set=watchNamespaces={default}")
    command = "kubectl delete poddisruptionbudgets -A -l app.kubernetes.io/managed-by=hone,hone.dev/inferenceservice"
    assert command not in installed
    assert f"  {command}\n" in notes
    assert f"\n{command}\n" in (ROOT / "docs/operations/upgrade.md").read_text()
    place.kubectl(*command.split()[1:])
    assert place.names("poddisruptionbudgets", TEAM) == {"mine"}


def test_another_release_leaves_or_takes_over_the_definitions(place: Place) -> None:
    place.helm("install", "hone", CHART, "--namespace", SYSTEM)
    place.uninstall("hone", SYSTEM)
    install = ("install", "other", CHART, "--namespace", SYSTEM)
    with pytest.raises(AssertionError, match=r'invalid ownership metadata.*"other".*current value is "hone"'):
        place.helm(*install)
    place.helm(*install, "--set=crds.enabled=false")
    place.helm("uninstall", "other", "--namespace", SYSTEM, "--no-hooks")
    place.helm(*install, "--take-ownership")
    place.helm("uninstall", "other", "--namespace", SYSTEM, "--no-hooks")
    assert place.names("crd") >= set(CRDS)


def test_the_administrator_of_one_namespace_installs_with_given_roles(place: Place, tmp_path: Path) -> None:
    place.server.install_crds()
    values = {"watchNamespaces": [TEAM], "crds": {"enabled": False}, "admission": {"enabled": False}}
    values["networkPolicy"] = {"enabled": True}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    install = ("install", "hone", CHART, "--namespace", TEAM, "--values", file)
    with pytest.raises(AssertionError, match="attempting to grant RBAC permissions not currently held"):
        place.helm(*install, user=CAROL)
    place.helm("uninstall", "hone", "--namespace", TEAM, "--no-hooks", user=CAROL)
    # The cluster's administrator creates the roles.
    given = ("template", *install[1:], "--show-only=templates/rbac.yaml")
    roles = place.helm(*given, "--set=serviceAccount.create=false,serviceAccount.name=hone-operator")
    place.kubectl("apply", "--filename=-", stdin=roles)
    place.helm(*install, "--set=rbac.create=false", user=CAROL)
    wait_until_may(place, account(TEAM, "hone-operator"), "patch", "finetunejobs.hone.dev", "--subresource=status")
    place.create_budget("served", BUDGET_LABELS)
    place.create_budget("served", BUDGET_LABELS, "default")
    assert "PodDisruptionBudgets deleted: 1" in place.uninstall("hone", TEAM, CAROL)
    assert place.names("poddisruptionbudgets", "default") == {"served"}
    place.kubectl("delete", "--filename=-", stdin=roles)
    place.kubectl("delete", "poddisruptionbudget", "served", "--namespace=default")


@pytest.mark.parametrize("answers", [True, False])
def test_budgets_that_cannot_be_removed_are_reported_with_a_command_that_removes_them(
    place: Place, answers: bool
) -> None:
    place.create_budget("served", BUDGET_LABELS)
    place.create_budget("mine", {})
    (port,) = free_ports(1)
    file = place.server.kubeconfig_of(NOBODY, None if answers else f"https://127.0.0.1:{port}")
    command = ["python3", "-m", "hone_operator.uninstall", f"--namespace={TEAM}", "--namespace=default"]
    code, said = place.run_hook(command, NOBODY, file)
    assert code == 1
    assert "Traceback" not in said
    assert ("403: poddisruptionbudgets.policy is forbidden" if answers else "The API server does not answer") in said
    for remedy in said.partition("Delete the budgets yourself: ")[2].strip().split("; "):
        place.kubectl(*remedy.split()[1:])
    assert place.names("poddisruptionbudgets", TEAM) == {"mine"}


def test_the_job_of_the_uninstallation_is_left_out_for_kubectl_apply(place: Place) -> None:
    rendered = place.helm("template", "hone", CHART, "--namespace", SYSTEM, "--no-hooks")
    assert "Deployment" in rendered
    assert "-uninstall" not in rendered


def test_a_namespace_that_is_gone_does_not_keep_the_budgets_of_others(place: Place) -> None:
    place.kubectl("create", "namespace", "gone")
    place.create_budget("served", BUDGET_LABELS)
    place.helm("install", "hone", CHART, "--namespace", SYSTEM, "--set", f"watchNamespaces={{gone,{TEAM}}}")
    place.kubectl("delete", "namespace", "gone", "--wait=false")
    # The controller that would do this does not run here.
    ended = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gone"}, "spec": {}})
    place.kubectl("replace", "--raw", "/api/v1/namespaces/gone/finalize", "--filename=-", stdin=ended)
    place.kubectl("wait", "--for=delete", "namespace/gone", "--timeout=100s")
    assert "PodDisruptionBudgets deleted: 1" in place.uninstall("hone", SYSTEM)
    assert not [name for name in place.names("clusterroles") if "hone" in name]


def test_a_refusal_in_one_namespace_does_not_keep_the_budgets_of_others(place: Place) -> None:
    place.create_budget("served", BUDGET_LABELS)
    command = ["python3", "-m", "hone_operator.uninstall", "--namespace=default", f"--namespace={TEAM}"]
    code, said = place.run_hook(command, CAROL)
    assert code == 1
    assert 'in the namespace "default"' in said
    assert [words.split()[3:5] for words in said.partition("Delete the budgets yourself: ")[2].split("; ")] == [
        ["-n", "default"]
    ]
    assert not place.names("poddisruptionbudgets", TEAM)
