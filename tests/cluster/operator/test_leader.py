"""Two operators and one Lease, on an API server without pods: one works, and the other continues when it ends."""

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from apiserver import ApiServer, api_server, free_ports, operator
from kubernetes.client import BatchV1Api, CoordinationV1Api, CustomObjectsApi
from kubernetes.client.exceptions import ApiException
from until import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

REPLICAS = ("replica-a", "replica-b")
LEASE = "hone-operator"
WRITES = ("create", "update", "patch", "delete")
# Longer than a Lease lasts. A follower that took the Lease for forgotten would need a minute.
SECONDS_TO_GO_ON = 50
SPEC = {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}}

Object = dict[str, Any]


@dataclass
class Pair:
    """Two replicas that are two users, so that the audit log shows which of them wrote."""

    server: ApiServer
    audit: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def holder(self) -> str | None:
        """Return the identity that holds the Lease."""
        try:
            found = CoordinationV1Api(self.server.client()).read_namespaced_lease(LEASE, "default")
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found.spec.holder_identity or None

    def leader(self) -> str | None:
        says = f"{self.holder()} leads"
        return next((name for name in self.running if says in (self.server.folder / f"{name}.log").read_text()), None)

    def ask(self, name: str, path: str) -> tuple[int, str]:
        """Return HTTP status and body of the replica's answer; status 0 without an answer."""
        try:
            with urllib.request.urlopen(f"http://{self.addresses[name]}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def create(self, name: str) -> None:
        body = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": SPEC}
        objects = CustomObjectsApi(self.server.client())
        objects.create_namespaced_custom_object("hone.dev", "v1alpha1", "default", "finetunejobs", body)

    def jobs(self) -> set[str]:
        listed = BatchV1Api(self.server.client()).list_namespaced_job("default").items
        return {(owner.name) for job in listed for owner in job.metadata.owner_references}

    def writes(self, name: str) -> list[tuple[datetime, str]]:
        """Return when the API server received this replica's writes, except of the Lease, which has its own fence."""
        complete, _, _ = self.audit.read_text().rpartition("\n")  # the API server writes meanwhile
        events = [json.loads(line) for line in complete.splitlines()]
        return [
            (datetime.fromisoformat(event["requestReceivedTimestamp"]), event["requestURI"])
            for event in events
            if event["user"]["username"] == name
            and event["verb"] in WRITES
            and event["objectRef"]["resource"] != "leases"
        ]


@pytest.fixture(scope="module")
def server(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    folder = tmp_path_factory.mktemp("leader")
    policy = folder / "policy.yaml"
    rule = {"level": "Metadata", "users": list(REPLICAS), "omitStages": ["RequestReceived"]}
    policy.write_text(json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [rule]}))
    flags = ("--audit-policy-file", str(policy), "--audit-log-path", str(folder / "audit.log"))
    users = dict.fromkeys(REPLICAS, ("system:masters",))
    with api_server(folder, users=users, flags=flags) as found:
        found.install_crds()
        yield found


@contextmanager
def started(pair: Pair, name: str) -> Iterator[None]:
    file = pair.server.folder / f"{name}.log"
    file.write_bytes(b"")
    pair.addresses[name] = f"127.0.0.1:{free_ports(1)[0]}"
    arguments = ("--lease-namespace", "default", "--listen", pair.addresses[name])
    with operator(pair.server.kubeconfig_of(name), *arguments, log=file) as process:
        pair.running[name] = process
        yield


@pytest.fixture
def pair(server: ApiServer) -> Iterator[Pair]:
    """Yield a pair in which replica-a leads and replica-b follows."""
    found = Pair(server, server.folder / "audit.log")
    with ExitStack() as stack:
        stack.enter_context(started(found, REPLICAS[0]))
        wait_until(lambda: found.leader() == REPLICAS[0])
        stack.enter_context(started(found, REPLICAS[1]))
        wait_until(lambda: "waits for Lease" in (server.folder / f"{REPLICAS[1]}.log").read_text())
        try:
            yield found
        finally:
            for process in found.running.values():
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)


def test_a_leader_that_is_terminated_hands_over_at_once(pair: Pair) -> None:
    pair.create("handed")
    wait_until(lambda: "handed" in pair.jobs())
    assert not pair.writes(REPLICAS[1])
    before = pair.holder()
    pair.running[REPLICAS[0]].terminate()
    pair.running[REPLICAS[0]].wait(60)
    assert pair.holder() != before, "it was not released"
    wait_until(lambda: pair.leader() == REPLICAS[1])
    pair.create("over")
    wait_until(lambda: "over" in pair.jobs())


def test_both_replicas_are_ready_and_one_reports_that_it_leads(pair: Pair) -> None:
    pair.create("counted")
    wait_until(lambda: "counted" in pair.jobs())
    for name, leads in zip(REPLICAS, ("1.0", "0.0"), strict=True):
        wait_until(lambda name=name: pair.ask(name, "/readyz")[0] == 200)  # type: ignore[misc]
        assert pair.ask(name, "/healthz")[0] == 200
        counted = 'hone_finetunejobs{reason="PodStarting",stage="Pending"}'
        expected = [
            f'leader_election_master_status{{name="hone-operator"}} {leads}',
            'rest_client_requests_total{code="200",method="GET",resource="finetunejobs"}',
            *([counted] if leads == "1.0" else []),
        ]
        wait_until(lambda name=name, lines=expected: all(line in pair.ask(name, "/metrics")[1] for line in lines))  # type: ignore[misc]
        assert leads == "1.0" or counted not in pair.ask(name, "/metrics")[1]


def test_a_leader_that_is_killed_is_replaced(pair: Pair) -> None:
    pair.running[REPLICAS[0]].kill()
    pair.create("left-behind")
    wait_until(lambda: "left-behind" in pair.jobs(), SECONDS_TO_GO_ON)
    assert pair.leader() == REPLICAS[1]


def test_a_leader_that_was_paused_writes_nothing_after_the_other_leads(pair: Pair) -> None:
    old, new = REPLICAS
    for number in range(30):  # it is paused in the middle of these
        pair.create(f"paused-{number}")
    pair.running[old].send_signal(signal.SIGSTOP)
    wait_until(lambda: pair.leader() == new, SECONDS_TO_GO_ON)
    lease = CoordinationV1Api(pair.server.client()).read_namespaced_lease(LEASE, "default")
    wait_until(lambda: {f"paused-{number}" for number in range(30)} <= pair.jobs())
    pair.create("later")
    pair.running[old].send_signal(signal.SIGCONT)
    assert pair.running[old].wait(timeout=60) == 1
    wait_until(lambda: "later" in pair.jobs())
    time.sleep(1)
    late = [uri for moment, uri in pair.writes(old) if moment > lease.spec.acquire_time]
    assert pair.writes(old)
    assert not late
