"""What kopf's own watches can't do, and why Hone has reflectors: docs/decisions/01-level-triggered-reconcile.md.

A test that fails here means that kopf has changed: read the decision again.
"""

import os
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pytest
from apiserver import ApiServer, api_server, processes
from faultproxy import BROKEN_STREAM, EXPIRED, Fault, FaultProxy, Request
from kubernetes.client import CustomObjectsApi
from until import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

JOBS = ("hone.dev", "v1alpha1", "default", "finetunejobs")
# kopf waits up to 54 s between its tries of a request that fails.
SECONDS = 120
HANDLER = """
import kopf

@kopf.on.event("hone.dev", "v1alpha1", "finetunejobs")
def print_event(type, name, **_):
    print(f"{type} {name}\\n", end="", flush=True)  # in one piece: kopf calls it in threads
"""


@dataclass
class Watcher:
    """An operator that is only kopf, and prints the type and the name of each event, behind a faulty proxy."""

    proxy: FaultProxy
    process: Popen[bytes]
    output: Path
    objects: CustomObjectsApi

    def create(self, name: str) -> None:
        spec = {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}, "resources": {"gpus": 0}}
        body = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}
        self.objects.create_namespaced_custom_object(*JOBS, body)

    def has_seen(self, event: str) -> bool:
        return event in self.output.read_text().splitlines()


@pytest.fixture(scope="module")
def server(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("kopf")) as found:
        found.install_crds()
        yield found


@pytest.fixture
def watcher(server: ApiServer, tmp_path: Path) -> Iterator[Watcher]:
    handler, output = tmp_path / "handler.py", tmp_path / "output"
    handler.write_text(HANDLER)
    command: list[object] = [sys.executable, "-m", "kopf", "run", "--standalone", "--all-namespaces", handler]
    with FaultProxy(server.url).running() as proxy, output.open("ab") as out:
        environment = dict(
            os.environ, KUBECONFIG=str(server.kubeconfig_of("admin", proxy.url)), PYTHONWARNINGS="ignore"
        )
        with processes([command], environment, out.fileno()) as [process]:
            found = Watcher(proxy, process, output, CustomObjectsApi(server.client()))
            first = f"first-{uuid.uuid4().hex[:8]}"
            found.create(first)
            wait_until(lambda: found.has_seen(f"ADDED {first}") or found.has_seen(f"None {first}"))
            yield found


def is_list_of_jobs(request: Request) -> bool:
    return request.method == "GET" and not request.is_watch and request.path.endswith("/finetunejobs")


def in_watches_of_jobs(fault: Fault, request: Request) -> Fault | None:
    return fault if request.is_watch and request.path.endswith("/finetunejobs") else None


def test_an_error_in_a_stream_ends_kopf(watcher: Watcher) -> None:
    with watcher.proxy.fault(lambda request: in_watches_of_jobs(BROKEN_STREAM, request)):
        assert watcher.process.wait(SECONDS) != 0
    assert "Error in the watch-stream" in watcher.output.read_text()


def test_kopf_does_not_report_what_was_deleted_while_it_did_not_watch(watcher: Watcher) -> None:
    watcher.create("gone")
    wait_until(lambda: watcher.has_seen("ADDED gone"))
    with watcher.proxy.fault(lambda request: in_watches_of_jobs(EXPIRED, request)):
        watcher.objects.delete_namespaced_custom_object(*JOBS, "gone")
        deleted = time.monotonic()
        wait_until(lambda: any(is_list_of_jobs(seen.request) for seen in watcher.proxy.list_requests_since(deleted)))
    watcher.create("later")
    wait_until(lambda: watcher.has_seen("ADDED later") or watcher.has_seen("None later"), SECONDS)
    assert not watcher.has_seen("DELETED gone")
