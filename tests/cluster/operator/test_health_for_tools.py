"""How kubectl, Helm, Flux and Argo CD judge Hone's objects, by their own libraries and the snippets of the docs."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import phases
import pytest
import yaml
from apiserver import ApiServer, api_server, operator
from conftest import report_not_run
from kube import chart, run

Object = dict[str, Any]
HERE = Path(__file__).parents[1]
DOCS = (HERE.parents[1] / "docs/gitops.md").read_text()
SNIPPETS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)]
KSTATUS = {"Ready": "Current", "Reconciling": "InProgress", "Stalled": "Failed"}
ARGO = {"Ready": "Healthy", "Reconciling": "Progressing", "Stalled": "Degraded"}
SECONDS = 100


class Judge:
    """The program of the folder kstatus."""

    def __init__(self, program: str, folder: Path) -> None:
        [customizations] = [each["data"]["resource.customizations"] for each in SNIPPETS if "data" in each]
        [expressions] = [each["spec"]["healthCheckExprs"] for each in SNIPPETS if "spec" in each]
        lua, cel = folder / "health.lua", folder / "expressions.json"
        lua.write_text(yaml.safe_load(customizations)["hone.dev/*"]["health.lua"])
        cel.write_text(json.dumps({each["kind"]: each for each in expressions}))
        self._command = [program, f"--lua={lua}", f"--cel={cel}"]

    def __call__(self, *objects: Object) -> list[dict[str, str]]:
        lines = "".join(json.dumps(each) + "\n" for each in objects)
        return [json.loads(line) for line in run(*self._command, stdin=lines).splitlines()]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    if not shutil.which("go"):
        report_not_run("the libraries of the tools are built with Go, and no `go` is on the PATH")
    return Judge(run(HERE / "kstatus/build", timeout=600).strip(), tmp_path_factory.mktemp("judge"))


def test_tools_judge_an_object_correctly_in_any_phase(judge: Judge) -> None:
    known = phases.objects()
    for (name, (owner, state)), found in zip(
        known.items(), judge(*(owner for owner, _ in known.values())), strict=True
    ):
        [ready] = [each for each in owner["status"]["conditions"] if each["type"] == "Ready"]
        assert found["kstatus"] == KSTATUS[state], name
        assert found["argo"] == ("Suspended" if ready["reason"] == "Suspended" else ARGO[state]), name
        is_used = any(
            each["type"] in ("Running", "Available") and each["status"] == "True"
            for each in owner["status"]["conditions"]
        )
        assert found["flux"] == ("Current" if is_used and state == "Reconciling" else KSTATUS[state]), name


def test_an_unobserved_change_and_a_deleted_object_are_not_current(judge: Judge) -> None:
    for owner, _ in phases.objects().values():
        owner["metadata"] = {**owner["metadata"], "generation": 2}
        leaving = owner | {"metadata": {**owner["metadata"], "deletionTimestamp": "2026-03-01T12:00:00Z"}}
        changed, left = judge(owner, leaving)
        assert (changed["kstatus"], changed["argo"], changed["flux"]) == ("InProgress", "Progressing", "InProgress")
        assert left["kstatus"] == "Terminating"


@pytest.fixture(scope="module")
def server(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("health")) as found:
        found.install_crds()
        yield found


def kubectl(server: ApiServer, *arguments: str, stdin: str | None = None) -> str:
    return run(server.programs / "kubectl", "--kubeconfig", server.kubeconfig, *arguments, stdin=stdin)


def objects(server: ApiServer) -> list[Object]:
    return list(json.loads(kubectl(server, "get", "ftj,hisvc", "--output", "json"))["items"])


def job(name: str, **spec: Any) -> Object:
    spec = {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}, "resources": {"gpus": 0}, **spec}
    return {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}


def service(name: str, model: Object) -> Object:
    kind = {"apiVersion": "hone.dev/v1alpha1", "kind": "InferenceService"}
    return {**kind, "metadata": {"name": name}, "spec": {"model": model, "replicas": 0}}


def settle(server: ApiServer, stop: threading.Event) -> None:
    """Write the status of each Deployment without replicas, as its controller would, which does not run here."""
    while not stop.wait(0.5):
        for found in json.loads(kubectl(server, "get", "deployments", "--output", "json"))["items"]:
            status = {"status": {"observedGeneration": found["metadata"]["generation"]}}
            if found.get("status") != status["status"]:
                patch = ("--type=merge", "--subresource=status", "--patch", json.dumps(status))
                kubectl(server, "patch", "deployment", found["metadata"]["name"], *patch)


def helm(server: ApiServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(server.programs / "helm"), "--kubeconfig", str(server.kubeconfig), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS, check=False)


def test_tools_wait_for_the_operator_and_see_its_conditions(judge: Judge, server: ApiServer, tmp_path: Path) -> None:
    kubectl(
        server,
        "create",
        "--filename=-",
        stdin=yaml.safe_dump_all([job("early"), service("early", {"name": "example/model"})]),
    )
    for found in judge(*objects(server)):
        assert (found["kstatus"], found["argo"], found["flux"]) == ("InProgress", "Progressing", "InProgress")
    assert kubectl(server, "get", "ftj,hisvc", "--no-headers").count("NotObserved") == 2

    stop = threading.Event()
    controller = threading.Thread(target=settle, args=(server, stop))
    controller.start()
    try:
        with operator(server.kubeconfig, log=tmp_path / "log"):
            wait = ("--for=condition=Ready", f"--timeout={SECONDS}s")
            kubectl(server, "wait", "hisvc/early", *wait)
            good = chart(tmp_path / "good", job("paused", suspend=True), service("idle", {"name": "example/model"}))
            done = helm(server, "install", "good", good, "--wait", f"--timeout={SECONDS}s")
            assert done.returncode == 0, done.stderr
            kubectl(server, "create", "service", "clusterip", "taken", "--tcp=80")
            bad = chart(tmp_path / "bad", service("taken", {"name": "example/model"}))
            done = helm(server, "install", "bad", bad, "--wait", f"--timeout={SECONDS}s")
            assert done.returncode, "Helm takes a service that can't be made for ready"
            assert "status: Failed" in done.stderr, done.stderr
            assert "NameConflict" in kubectl(server, "get", "hisvc", "taken", "--no-headers")
    finally:
        stop.set()
        controller.join()
    known = objects(server)
    found = {each["metadata"]["name"]: answer for each, answer in zip(known, judge(*known), strict=True)}
    assert (found["paused"]["kstatus"], found["taken"]["kstatus"]) == ("Current", "Failed")
