"""The launchers of several nodes begin together, and the loss of one ends all. Over real sockets, without torch."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from run_isolation import find_free_port

NODE = """
import json, sys, time
from contextlib import nullcontext
from pathlib import Path
from hone_trainer.distributed import coordinator, coordinator_client
from hone_trainer.distributed.results import WorkerResult
from hone_trainer.distributed.ranks import Rendezvous
coordinator.HEARTBEAT_SECONDS = coordinator_client.HEARTBEAT_SECONDS = 0.2
address, port, nodes, node, done, timeout = sys.argv[1:]
coordinator.HEARTBEAT_TIMEOUT_SECONDS = coordinator_client.HEARTBEAT_TIMEOUT_SECONDS = float(timeout)
here = Rendezvous(int(nodes), int(node), address, int(port))
def tell(**said): print(json.dumps(said), flush=True)
with coordinator.Coordinator(here) if here.node_rank == 0 else nullcontext():
    own = coordinator_client.CoordinatorClient(here, lambda text: tell(note=text))
    tell(begin=own.join_rendezvous(Path(done).exists))
    result = WorkerResult.model_validate_json(sys.stdin.readline() or "{}")
    while not own.end_reason and result.outcome == "Interrupted":
        time.sleep(0.05)
    own.report_exit()
    if result.outcome == "Interrupted":
        result = WorkerResult(outcome="Failed", message="connection closed by peer")
    found = own.resolve_result(result)
    tell(outcome=found.outcome, message=found.message, reason=found.reason)
"""
# With this input, a node waits until the run is over, and then fails as one whose peers are gone.
WAIT = json.dumps({"outcome": "Interrupted"})


def failing(**word: Any) -> str:
    return json.dumps({"outcome": "Failed", **word})


class Node:
    """A launcher without processes to launch."""

    def __init__(self, port: int, nodes: int, node: int, address: str, done: str, timeout: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NODE, address, str(port), str(nodes), str(node), done, str(timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            text=True,
        )

    def hear(self, name: str) -> Any:
        """Return the next value that it prints under this name."""
        assert self._process.stdout
        for line in self._process.stdout:
            if name in (said := json.loads(line)):
                return said if name == "outcome" else said[name]
        raise AssertionError(f"it ended without {name}")

    def hear_note(self, text: str) -> None:
        while text not in self.hear("note"):
            pass

    def tell(self, word: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def port() -> int:
    return find_free_port()


@pytest.fixture
def start(port: int) -> Iterator[Callable[..., Node]]:
    """Start node `node` of `nodes`: start(node, nodes)."""
    started: list[Node] = []

    def one(
        node: int, nodes: int = 2, address: str = "127.0.0.1", done: str = "/nowhere", timeout: float = 60.0
    ) -> Node:
        started.append(Node(port, nodes, node, address, done, timeout))
        return started[-1]

    yield one
    for node in started:
        node.end()


def test_all_nodes_begin_when_the_last_joins_and_print_which_ones_they_wait_for(start: Callable[..., Node]) -> None:
    early = start(2, 3)
    early.hear_note("node 2 waits for node 0 at 127.0.0.1")
    first = start(0, 3)
    early.hear_note("node 2 waits for node 1 of 3")
    late = start(1, 3)
    assert len({node.hear("begin") for node in (early, first, late)}) == 1


def test_a_node_waits_for_a_name_that_can_not_be_resolved_yet(start: Callable[..., Node]) -> None:
    start(1, address="job-0.nowhere.invalid").hear_note("node 1 waits for node 0 at job-0.nowhere.invalid")


def test_a_node_that_is_lost_before_all_have_joined_may_join_again(start: Callable[..., Node]) -> None:
    first, lost = start(0, 3), start(1, 3)
    first.hear_note("node 0 waits for node 2 ")
    lost.end()
    first.hear_note("node 0 waits for node 1, 2 ")
    again, last = start(1, 3), start(2, 3)
    assert {node.hear("begin") for node in (first, again, last)}


def test_a_complete_artifact_ends_the_wait(start: Callable[..., Node], tmp_path: Any) -> None:
    late = start(1, done=str(tmp_path))
    assert late.hear("begin") is None


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_loss_of_one_node_interrupts_the_others(start: Callable[..., Node], lost: int, how: signal.Signals) -> None:
    # A node that hangs is only found by its silence. The others must not be silent for as long on a busy machine.
    nodes = [start(node, 3, timeout=4.0 if how == signal.SIGSTOP else 60.0) for node in range(3)]
    for node in nodes:
        node.hear("begin")
        node.tell(WAIT)
    nodes[lost].signal(how)
    for node in nodes:
        if node is not nodes[lost]:
            ended = node.hear("outcome")
            assert (ended["outcome"], ended["message"]) == ("Interrupted", f"Node {lost} was lost")


@pytest.mark.parametrize(
    ("words", "outcomes"),
    [
        # the failure with a name is the cause
        ([failing(reason="NonFiniteLoss"), WAIT, WAIT], ["Failed", "Interrupted", "Interrupted"]),
        ([WAIT, failing(reason="DiskFull"), WAIT], ["Interrupted", "Failed", "Interrupted"]),
        # without a name: the node with a killed process, else the first one
        ([WAIT, failing(killed=True), failing()], ["Interrupted", "Failed", "Interrupted"]),
        ([failing(), failing(), failing(killed=True)], ["Interrupted", "Interrupted", "Failed"]),
        ([WAIT, WAIT, failing()], ["Interrupted", "Interrupted", "Failed"]),
        # finished work stays finished
        ([json.dumps({"outcome": "Succeeded"}), WAIT, WAIT], ["Succeeded", "Interrupted", "Interrupted"]),
    ],
)
def test_one_node_has_the_cause_and_the_others_are_interrupted(
    start: Callable[..., Node], words: list[str], outcomes: list[str]
) -> None:
    nodes = [start(node, 3) for node in range(3)]
    for node in nodes:
        node.hear("begin")
    for node, word in zip(nodes, words, strict=True):
        node.tell(word)
    assert [node.hear("outcome")["outcome"] for node in nodes] == outcomes


def test_a_node_that_joins_after_the_begin_waits_for_the_next_start(start: Callable[..., Node]) -> None:
    nodes = [start(node) for node in range(2)]
    for node in nodes:
        node.hear("begin")
    start(1).hear_note("it is of an earlier start")


def test_connections_of_strangers_do_no_harm(start: Callable[..., Node], port: int) -> None:
    first = start(0)
    first.hear("note")
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b'{"node": 7, "nodes": 2}\n', b"[]\n", b"\xff" * 100_000):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(said)
    second = start(1)
    assert first.hear("begin") == second.hear("begin")
