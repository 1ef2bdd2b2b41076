"""With an API server that is gone, slow, or wrong, the operator does not exit, flood it, or lose anything."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import Popen
from threading import Thread
from typing import Any

import pytest
from apiserver import ApiServer, api_server, operator
from faultproxy import BROKEN_STREAM, EXPIRED, GONE, HTML, Fault, FaultProxy, Request, Seen
from kubernetes.client import BatchV1Api, CoreV1Api, CustomObjectsApi
from until import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

Object = dict[str, Any]
CHILDREN = ("jobs", "configmaps", "persistentvolumeclaims")
# The address of a simulated trainer, which the operator polls for progress: one for each process of tests.
TRAINER = (f"127.80.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}", 8080)
OUTAGE_SECONDS = 12
# How long the operator of these tests waits for an answer.
REQUEST_SECONDS = 15
SETTINGS = {f"hone_operator.kube.client.{name}": REQUEST_SECONDS for name in ("TIMEOUT_SECONDS", "WRITE_SECONDS")}


@dataclass
class Bench:
    """An operator that reaches its API server only through a faulty proxy. The test bypasses the proxy."""

    server: ApiServer
    proxy: FaultProxy
    process: Popen[bytes]
    log: Path

    def __post_init__(self) -> None:
        self.objects = CustomObjectsApi(self.server.client())
        self.core = CoreV1Api(self.server.client())
        self.batch = BatchV1Api(self.server.client())

    def create(self, name: str, namespace: str = "default") -> None:
        spec = {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}, "resources": {"gpus": 0}}
        body = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}
        self.objects.create_namespaced_custom_object("hone.dev", "v1alpha1", namespace, "finetunejobs", body)

    def get(self, name: str, namespace: str = "default") -> Object:
        return self.objects.get_namespaced_custom_object("hone.dev", "v1alpha1", namespace, "finetunejobs", name)

    def children(self, name: str, namespace: str = "default") -> dict[str, int]:
        """Return the number of children of each kind."""
        selector = {"label_selector": f"hone.dev/finetunejob={name}"}
        listed = (
            self.batch.list_namespaced_job(namespace, **selector),
            self.core.list_namespaced_config_map(namespace, **selector),
            self.core.list_namespaced_persistent_volume_claim(namespace, **selector),
        )
        return dict(zip(CHILDREN, (len(each.items) for each in listed), strict=True))

    def settled(self, name: str, namespace: str = "default") -> bool:
        conditions = self.get(name, namespace).get("status", {}).get("conditions", [])
        return bool(conditions) and self.children(name, namespace) == dict.fromkeys(CHILDREN, 1)

    def check(self) -> None:
        """Check that the operator still runs, and logged no unexpected error."""
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        assert "Traceback" not in self.log.read_text(), self.log.read_text()[-3000:]


@pytest.fixture(scope="module")
def bench(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("faults")
    with api_server(folder) as server, FaultProxy(server.url).running() as proxy:
        kubeconfig = server.kubeconfig_of("admin", proxy.url)
        server.install_crds()
        CoreV1Api(server.client()).create_namespace({"metadata": {"name": "slow"}})
        with operator(kubeconfig, log=folder / "operator.log", settings=SETTINGS) as process:
            found = Bench(server, proxy, process, folder / "operator.log")
            found.create("first")
            wait_until(lambda: found.settled("first"))
            yield found


@pytest.fixture(scope="module")
def trainer() -> Iterator[dict[str, int]]:
    """Answer GET /progress; the test sets the step."""
    state = {"step": 1}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            progress = {"step": state["step"], "totalSteps": 100, "percent": state["step"]}
            body = json.dumps({"stage": "Training", "progress": progress}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(TRAINER, Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()


def run_pod(bench: Bench, name: str) -> str:
    """Create a running trainer, as the Job controller, the scheduler and the kubelet would. Return the pod's name."""
    job = bench.batch.list_namespaced_job("default", label_selector=f"hone.dev/finetunejob={name}").items[0]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.metadata.name, "uid": job.metadata.uid}
    template = json.loads(bench.batch.read_namespaced_job(job.metadata.name, "default", _preload_content=False).data)[
        "spec"
    ]["template"]
    metadata = {"name": f"{name}-pod", "labels": template["metadata"]["labels"]}
    metadata["ownerReferences"] = [{**owner, "controller": True}]
    bench.core.create_namespaced_pod("default", {"metadata": metadata, "spec": template["spec"]})
    set_container(bench, f"{name}-pod", "Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    return f"{name}-pod"


def set_container(bench: Bench, pod: str, phase: str, state: Object) -> None:
    container = {
        "name": "trainer", "ready": True, "restartCount": 0, "image": "x", "imageID": "x", "state": state,
    }  # fmt: skip
    status = {"phase": phase, "podIP": TRAINER[0], "podIPs": [{"ip": TRAINER[0]}], "containerStatuses": [container]}
    bench.core.patch_namespaced_pod_status(pod, "default", {"status": status})


def step(bench: Bench, name: str) -> int:
    return int((bench.get(name).get("status", {}).get("progress") or {}).get("step", 0))


def test_an_answer_that_comes_too_late_makes_no_second_child(bench: Bench) -> None:
    """The writes succeed, and their answers come after the operator's time limit."""
    begun = time.monotonic()
    late: list[str] = []

    def choose(request: Request) -> Fault | None:
        if "/namespaces/slow/" in request.path and request.name and request.name not in late:
            late.append(request.name)
            return Fault(delay=REQUEST_SECONDS + 2)
        return None

    with bench.proxy.fault(choose, cut=False):
        bench.create("late", "slow")
        wait_until(lambda: len(late) == len(CHILDREN))
        bench.create("beside", "default")  # a request that hangs delays no other object
        assert wait_until(lambda: bench.settled("beside")) < REQUEST_SECONDS - 2
        wait_until(lambda: bench.settled("late", "slow"))
    assert time.monotonic() - begun > REQUEST_SECONDS
    bench.check()


def test_nothing_is_lost_while_the_api_server_is_gone(bench: Bench, trainer: dict[str, int]) -> None:
    """Meanwhile a job progresses, another ends, one is deleted, one is created."""
    for name in ("goes-on", "ends", "is-deleted"):
        bench.create(name)
    for name in ("goes-on", "ends", "is-deleted"):
        wait_until(lambda name=name: bench.settled(name))  # type: ignore[misc]
    run_pod(bench, "goes-on")
    ending = run_pod(bench, "ends")
    wait_until(lambda: step(bench, "goes-on") == 1 and step(bench, "ends") == 1)

    begun = time.monotonic()
    with bench.proxy.fault(lambda _: GONE):
        trainer["step"] = 60
        artifact = {"kind": "adapter", "digest": "sha256:" + "0" * 64, "baseModel": "example/model"}
        message = {"outcome": "Succeeded", "reason": "Succeeded", "message": "done", "artifact": artifact}
        ended = {"exitCode": 0, "message": json.dumps(message), "finishedAt": "2026-01-01T01:00:00Z"}
        ended["startedAt"] = "2026-01-01T00:00:00Z"
        set_container(bench, ending, "Succeeded", {"terminated": ended})
        now = "2026-01-01T01:00:00Z"
        conditions = [
            {"type": type_, "status": "True", "lastTransitionTime": now, "lastProbeTime": now}
            for type_ in ("SuccessCriteriaMet", "Complete")
        ]
        status = {"conditions": conditions, "startTime": now, "completionTime": now, "succeeded": 1}
        bench.batch.patch_namespaced_job_status("ends-train", "default", {"status": status})
        bench.objects.delete_namespaced_custom_object("hone.dev", "v1alpha1", "default", "finetunejobs", "is-deleted")
        bench.create("made-meanwhile")
        time.sleep(OUTAGE_SECONDS)
        third, ended = OUTAGE_SECONDS / 3, time.monotonic()
        asked = [len([s for s in bench.proxy.list_requests_since(begun) if s.at < begun + third])]
        asked.append(len(bench.proxy.list_requests_since(ended - third)))
    # The requests become fewer with time, so the duration of the fault does not matter.
    assert asked[1] < asked[0]
    assert sum(asked) < 200
    wait_until(lambda: bench.settled("made-meanwhile"))
    wait_until(lambda: step(bench, "goes-on") == 60)
    wait_until(lambda: bench.get("ends")["status"]["stage"] == "Succeeded")
    assert bench.get("ends")["status"]["artifact"]["digest"] == artifact["digest"]
    assert bench.children("goes-on") == dict.fromkeys(CHILDREN, 1)
    bench.check()


@pytest.mark.parametrize(
    ("name", "fault", "seconds", "most"),
    [
        ("watches-cut-at-once", Fault(cut_after=0.01), 6, 120),
        ("watches-too-old", EXPIRED, 6, 120),
        ("watches-with-an-error", BROKEN_STREAM, 6, 120),
        ("watches-of-html", HTML, 6, 120),
    ],
)
def test_watches_that_end_at_once(bench: Bench, name: str, fault: Fault, seconds: float, most: int) -> None:
    """Meanwhile created and deleted objects are observed, by continued watches or by lists."""
    deleted = f"{name}-deleted"
    bench.create(deleted)
    wait_until(lambda: bench.settled(deleted))
    before = bench.batch.read_namespaced_job(f"{deleted}-train", "default").metadata.uid
    begun = time.monotonic()
    with bench.proxy.fault(lambda request: fault if request.is_watch else None):
        bench.batch.delete_namespaced_job(f"{deleted}-train", "default", propagation_policy="Background")
        bench.create(name)
        time.sleep(seconds)
        asked = [each for each in bench.proxy.list_requests_since(begun) if not each.request.is_write]
    assert len(asked) < most
    wait_until(lambda: bench.settled(name) and bench.settled(deleted))
    assert bench.batch.read_namespaced_job(f"{deleted}-train", "default").metadata.uid != before
    bench.check()


def test_a_balancer_that_answers_with_pages_of_its_own(bench: Bench) -> None:
    """Lists, watches and reads get 200 and HTML."""
    begun = time.monotonic()
    with bench.proxy.fault(lambda request: None if request.is_write else HTML):
        bench.create("html")
        time.sleep(6)
        assert len(bench.proxy.list_requests_since(begun)) < 200
    wait_until(lambda: bench.settled("html"))
    bench.check()


def test_retry_after_is_respected(bench: Bench) -> None:
    """429 with Retry-After, for everything."""
    bench.create("calm")  # earlier faults are over
    wait_until(lambda: bench.settled("calm"))
    seconds, begun = 5, time.monotonic()
    busy = Fault(status=429, headers=(("Retry-After", str(seconds)),))

    def list_refused() -> list[Seen]:
        refused = [each for each in bench.proxy.list_requests_since(begun) if each.status == 429]
        return [each for each in refused if "persistentvolumeclaims/busy" in each.request.path]

    with bench.proxy.fault(lambda _: busy, cut=False):
        bench.create("busy")
        wait_until(list_refused)
        time.sleep(seconds - 1)
        posts = list_refused()
    assert len(posts) == 1
    wait_until(lambda: bench.settled("busy"))
    again = [
        each
        for each in bench.proxy.list_requests_since(begun)
        if each.request == posts[0].request and each.status == 404
    ]
    assert min(each.at for each in again) >= posts[0].at + seconds
    bench.check()


@pytest.mark.parametrize(
    ("name", "fault"),
    [("conflicts", Fault(status=409)), ("errors", Fault(status=500)), ("lost-answers", Fault(lost=True))],
)
def test_writes_that_fail_half_of_the_time(bench: Bench, name: str, fault: Fault) -> None:
    """Some of these writes succeed, and only their answers are lost."""
    writes = [0]

    def choose(request: Request) -> Fault | None:
        if not request.is_write:
            return None
        writes[0] += 1
        return fault if writes[0] % 2 else None

    begun = time.monotonic()
    with bench.proxy.fault(choose, cut=False):
        for number in range(4):
            bench.create(f"{name}-{number}")
        wait_until(lambda: all(bench.settled(f"{name}-{number}") for number in range(4)))
    time.sleep(1)
    for number in range(4):
        assert bench.children(f"{name}-{number}") == dict.fromkeys(CHILDREN, 1)
    assert len(bench.proxy.list_requests_since(begun)) < 250
    bench.check()


def test_after_the_faults_nothing_is_written(bench: Bench) -> None:
    wait_until(lambda: all(bench.settled(found["metadata"]["name"]) for found in _all(bench)))
    time.sleep(3)
    wait_until(lambda: not list_writes_since(bench, time.monotonic() - 3))
    begun = time.monotonic()
    time.sleep(5)
    assert not list_writes_since(bench, begun)
    bench.check()


def list_writes_since(bench: Bench, moment: float) -> list[Seen]:
    return [each for each in bench.proxy.list_requests_since(moment) if each.request.is_write]


def _all(bench: Bench) -> list[Object]:
    listed = bench.objects.list_namespaced_custom_object("hone.dev", "v1alpha1", "default", "finetunejobs")
    return [found for found in listed["items"] if found.get("status", {}).get("stage") != "Succeeded"]
