"""Ownership on a real API server: objects of others are not changed, and every failure reaches the status."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from apiserver import ApiServer, api_server, free_ports, operator
from hone_operator.controller import Controller
from hone_operator.kube.client import Api
from hone_operator.objects.resources import FINETUNEJOBS, Key
from hone_operator.observability.metrics import Metrics
from hone_operator.pods.pod_spec import Images
from kubernetes.client import (
    AdmissionregistrationV1Api,
    ApiException,
    AppsV1Api,
    BatchV1Api,
    CoreV1Api,
    CustomObjectsApi,
    PolicyV1Api,
    RbacAuthorizationV1Api,
)
from until import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

Object = dict[str, Any]
# How often the operator of these tests looks whether the object of somebody else is gone.
SETTINGS = {"hone_operator.finetunejob.plan.CONFLICT_RECHECK_SECONDS": 3}
PLURALS = {"FineTuneJob": "finetunejobs", "InferenceService": "inferenceservices"}
TRAINING = {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}, "resources": {"gpus": 0}}
SERVING = {"model": {"name": "example/model"}, "resources": {"gpus": 0}, "replicas": 2}
TWO_NODES = {
    "resources": {"gpus": 1, "nodes": 2},
    "output": {"storage": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}},
}
HONE = "system:serviceaccount:hone-system:hone-operator"


@dataclass
class Bench:
    """An API server with an operator that watches it."""

    server: ApiServer
    log: Path

    def __post_init__(self) -> None:
        client = self.server.client()
        self.objects, self.core, self.batch = CustomObjectsApi(client), CoreV1Api(client), BatchV1Api(client)
        self.apps, self.policy, self.admission = (
            AppsV1Api(client),
            PolicyV1Api(client),
            AdmissionregistrationV1Api(client),
        )

    def create(self, kind: str, name: str, spec: Object, namespace: str = "default", **metadata: Any) -> Object:
        body = {"apiVersion": "hone.dev/v1alpha1", "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}
        made: Object = self.objects.create_namespaced_custom_object(
            "hone.dev", "v1alpha1", namespace, PLURALS[kind], body
        )
        return made

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        found: Object = self.objects.get_namespaced_custom_object(
            "hone.dev", "v1alpha1", namespace, PLURALS[kind], name
        )
        return found

    def delete(self, kind: str, name: str) -> None:
        self.objects.delete_namespaced_custom_object("hone.dev", "v1alpha1", "default", PLURALS[kind], name)

    def condition(self, kind: str, name: str, type_: str, namespace: str = "default") -> Object:
        conditions = (self.get(kind, name, namespace).get("status") or {}).get("conditions") or []
        return next((each for each in conditions if each["type"] == type_), {})

    def job(self, name: str) -> Any:
        found = self.batch.list_namespaced_job("default", field_selector=f"metadata.name={name}").items
        return found[0] if found else None


@pytest.fixture(scope="module")
def bench(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("identity")
    with api_server(folder) as server:
        server.install_crds()
        with operator(server.kubeconfig, log=folder / "operator.log", settings=SETTINGS):
            yield Bench(server, folder / "operator.log")


def test_a_successor_never_gets_the_status_of_its_predecessor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, control_plane: None
) -> None:
    file = str(bench.server.kubeconfig)
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", file)
    bench.core.create_namespace({"metadata": {"name": "quiet"}})

    async def scenario() -> None:
        api = await Api.connect(Metrics())
        controller = Controller(api, Images("image", {}), ["quiet"], Metrics(), lambda: True)
        body = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "spec": TRAINING}
        body["metadata"] = {"name": "again", "namespace": "quiet"}
        first = await api.create(FINETUNEJOBS, json.loads(json.dumps(body)))
        controller.cache.put(FINETUNEJOBS, first)
        await api.delete(FINETUNEJOBS, "quiet", "again", first["metadata"]["uid"])
        second = await api.create(FINETUNEJOBS, json.loads(json.dumps(body)))
        key = Key(FINETUNEJOBS, "quiet", "again")
        assert not await controller.reconciler.patch_status(key, first, {"stage": "Training"})
        now = await api.get(FINETUNEJOBS, "quiet", "again")
        assert now
        assert now["metadata"]["uid"] == second["metadata"]["uid"]
        assert (now.get("status") or {}).get("stage") != "Training"
        controller.cache.put(FINETUNEJOBS, first)
        cached = controller.cache.get(FINETUNEJOBS, "quiet", "again")
        assert cached
        assert cached["metadata"]["uid"] == second["metadata"]["uid"]
        await controller.stop()

    asyncio.run(scenario())


def test_a_service_of_somebody_else_keeps_its_name(bench: Bench) -> None:
    theirs = {"metadata": {"name": "several-train"}, "spec": {"ports": [{"port": 80}], "selector": {"app": "mine"}}}
    before = bench.core.create_namespaced_service("default", theirs)
    bench.create("FineTuneJob", "several", {**TRAINING, **TWO_NODES})
    wait_until(lambda: bench.condition("FineTuneJob", "several", "Accepted").get("reason") == "NameConflict")
    after = bench.core.read_namespaced_service("several-train", "default")
    assert after.metadata.resource_version == before.metadata.resource_version
    assert bench.job("several-prepare") is None
    bench.delete("FineTuneJob", "several")


def test_a_claim_of_somebody_else_is_not_written_to(bench: Bench) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    bench.core.create_namespaced_persistent_volume_claim("default", {"metadata": {"name": "theirs"}, "spec": spec})
    bench.create("FineTuneJob", "theirs", TRAINING)
    wait_until(lambda: bench.condition("FineTuneJob", "theirs", "Accepted").get("reason") == "NameConflict")
    assert "spec.output.claim.name: theirs" in bench.condition("FineTuneJob", "theirs", "Accepted")["message"]
    assert bench.job("theirs-train") is None
    bench.delete("FineTuneJob", "theirs")
    bench.create("FineTuneJob", "theirs", {**TRAINING, "output": {"claim": {"name": "theirs"}}})
    wait_until(lambda: bench.job("theirs-train"))


def test_a_job_continues_once_the_claim_of_somebody_else_is_removed(bench: Bench) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"metadata": {"name": "removed"}, "spec": spec}
    bench.core.create_namespaced_persistent_volume_claim("default", claim)
    bench.create("FineTuneJob", "removed", TRAINING)
    wait_until(lambda: bench.condition("FineTuneJob", "removed", "Accepted").get("reason") == "NameConflict")
    bench.core.delete_namespaced_persistent_volume_claim("removed", "default")
    unprotected = {"metadata": {"finalizers": None}}  # no controller here removes kubernetes.io/pvc-protection
    bench.core.patch_namespaced_persistent_volume_claim("removed", "default", unprotected)
    wait_until(lambda: bench.job("removed-train"))
    made = bench.core.read_namespaced_persistent_volume_claim("removed", "default")
    assert made.metadata.labels["hone.dev/finetunejob"] == "removed"


def orphan_children(bench: Bench, name: str) -> str:
    """Delete a FineTuneJob as with `--cascade=orphan`, without a garbage collector. Return its Job's uid."""
    wait_until(lambda: bench.job(f"{name}-train") and bench.condition("FineTuneJob", name, "Running"))
    uid = str(bench.job(f"{name}-train").metadata.uid)
    bench.delete("FineTuneJob", name)
    nothing = {"metadata": {"ownerReferences": None}}
    bench.batch.patch_namespaced_job(f"{name}-train", "default", nothing)
    bench.core.patch_namespaced_config_map(f"{name}-manifest", "default", nothing)
    return uid


def test_children_without_a_controller_are_adopted_when_they_are_of_the_same_spec(bench: Bench) -> None:
    bench.create("FineTuneJob", "restored", TRAINING)
    before = orphan_children(bench, "restored")
    made = bench.create("FineTuneJob", "restored", TRAINING)

    def owner(child: Any) -> str | None:
        references = child.metadata.owner_references or []
        return next((str(each.uid) for each in references if each.controller), None)

    wait_until(lambda: owner(bench.job("restored-train")) == made["metadata"]["uid"])
    assert bench.job("restored-train").metadata.uid == before
    wait_until(
        lambda: owner(bench.core.read_namespaced_config_map("restored-manifest", "default")) == made["metadata"]["uid"]
    )
    wait_until(lambda: bench.condition("FineTuneJob", "restored", "Accepted").get("status") == "True")


def test_a_job_without_a_controller_of_another_spec_is_replaced(bench: Bench) -> None:
    bench.create("FineTuneJob", "changed", TRAINING)
    before = orphan_children(bench, "changed")
    bench.create("FineTuneJob", "changed", {**TRAINING, "dataset": {"name": "example/other"}})
    wait_until(lambda: (job := bench.job("changed-train")) and job.metadata.uid != before)
    manifest = bench.core.read_namespaced_config_map("changed-manifest", "default").data
    assert "example/other" in "".join(manifest.values())


def forbid_budgets(bench: Bench) -> Callable[[], object]:
    rules = [{"apiGroups": ["policy"], "apiVersions": ["v1"], "operations": ["CREATE"]}]
    rules[0]["resources"] = ["poddisruptionbudgets"]
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "false", "message": "no budgets here"}],
    }
    bench.admission.create_validating_admission_policy({"metadata": {"name": "no-budgets"}, "spec": spec})
    binding = {"policyName": "no-budgets", "validationActions": ["Deny"]}
    bench.admission.create_validating_admission_policy_binding({"metadata": {"name": "no-budgets"}, "spec": binding})

    def is_refused() -> bool:
        body = {"metadata": {"name": "probe"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"a": "b"}}}}
        try:
            bench.policy.create_namespaced_pod_disruption_budget("default", body, dry_run="All")
        except ApiException as error:
            return "no budgets here" in str(error.body)
        return False

    wait_until(is_refused)
    return lambda: bench.admission.delete_validating_admission_policy_binding("no-budgets")


def test_a_refused_child_is_named_and_the_others_are_made(bench: Bench) -> None:
    allow = forbid_budgets(bench)
    bench.create("InferenceService", "nobudget", SERVING)
    wait_until(lambda: bench.condition("InferenceService", "nobudget", "Synced").get("status") == "False")
    found = bench.condition("InferenceService", "nobudget", "Synced")
    assert found["reason"] == "ChildRefused"
    assert "PodDisruptionBudget nobudget" in found["message"]
    assert "no budgets here" in found["message"]
    assert bench.apps.read_namespaced_deployment("nobudget", "default")
    wait_until(lambda: bench.condition("InferenceService", "nobudget", "Progressing").get("reason") == "RollingOut")
    allow()
    wait_until(lambda: bench.condition("InferenceService", "nobudget", "Synced").get("status") == "True")


def test_a_webhook_that_is_down_reaches_the_object(bench: Bench) -> None:
    [port] = free_ports(1)
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    hook = {
        "name": "down.example.com",
        "clientConfig": {"url": f"https://127.0.0.1:{port}/"},
        "rules": [rule],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    bench.admission.create_validating_webhook_configuration({"metadata": {"name": "down"}, "webhooks": [hook]})
    try:
        bench.create("FineTuneJob", "hooked", TRAINING)
        wait_until(lambda: bench.condition("FineTuneJob", "hooked", "Running").get("reason") == "ApiFailing")
        words = bench.condition("FineTuneJob", "hooked", "Synced")["message"]
        assert "Job hooked-train" in words
        assert "down.example.com" in words
        assert "Traceback" not in bench.log.read_text()
    finally:
        bench.admission.delete_validating_webhook_configuration("down")
    wait_until(lambda: bench.job("hooked-train"))
    wait_until(lambda: bench.condition("FineTuneJob", "hooked", "Synced").get("status") == "True")


def test_a_child_that_another_writer_changes_again_and_again_is_repaired_ever_more_rarely(bench: Bench) -> None:
    bench.create("InferenceService", "fought", SERVING)
    wait_until(lambda: bench.condition("InferenceService", "fought", "Progressing"))
    done = Event()

    def fight() -> None:
        while not done.wait(0.05):
            if bench.apps.read_namespaced_deployment("fought", "default").spec.replicas != 3:
                with suppress(ApiException):  # a conflict with the operator's own write
                    bench.apps.patch_namespaced_deployment(
                        "fought", "default", {"spec": {"replicas": 3}}, field_manager="policy-engine"
                    )

    thread = Thread(target=fight)
    thread.start()
    try:
        wait_until(lambda: bench.condition("InferenceService", "fought", "Synced").get("reason") == "ChildContested")
        assert "Deployment fought" in bench.condition("InferenceService", "fought", "Synced")["message"]
        assert "policy-engine" in bench.condition("InferenceService", "fought", "Synced")["message"]
        before = bench.apps.read_namespaced_deployment("fought", "default").metadata.generation
        time.sleep(4)
        assert bench.apps.read_namespaced_deployment("fought", "default").metadata.generation - before <= 4
    finally:
        done.set()
        thread.join()


def test_a_namespace_that_can_not_be_read_stops_no_other(
    control_plane: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("namespaces")
    with api_server(folder, users={HONE: ("system:authenticated",)}) as server:
        server.install_crds()
        rbac, core = RbacAuthorizationV1Api(server.client()), CoreV1Api(server.client())
        for space in ("team-a", "team-b"):
            core.create_namespace({"metadata": {"name": space}})
        all_of_it = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
        rbac.create_cluster_role({"metadata": {"name": "hone"}, "rules": [all_of_it]})

        def allow(space: str) -> None:
            role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "hone"}
            subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": HONE}
            rbac.create_namespaced_role_binding(
                space, {"metadata": {"name": "hone"}, "roleRef": role, "subjects": [subject]}
            )

        allow("team-a")
        [port] = free_ports(1)
        found = Bench(server, folder / "operator.log")

        def readyz() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                    return answer.status, answer.read().decode()
            except OSError as error:
                return getattr(error, "code", 0), ""

        for space in ("team-a", "team-b"):
            found.create("FineTuneJob", "waits", TRAINING, space)
        watched = ["--namespace", "team-a", "--namespace", "team-b", "--listen", f"127.0.0.1:{port}"]
        with operator(server.kubeconfig_of(HONE), *watched, log=found.log):
            wait_until(lambda: found.condition("FineTuneJob", "waits", "Accepted", "team-a"))
            wait_until(lambda: (answer := readyz())[0] == 200 and "finetunejobs in namespace team-b" in answer[1])
            wait_until(lambda: "finetunejobs in namespace team-b can't be listed" in found.log.read_text())
            assert not found.condition("FineTuneJob", "waits", "Accepted", "team-b")
            allow("team-b")
            wait_until(lambda: found.condition("FineTuneJob", "waits", "Accepted", "team-b"))
            wait_until(lambda: readyz() == (200, "ok\n"))
