"""Several nodes, each a launcher on this machine: with the environment that a cluster sets, and killed as pods are."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_isolation import find_free_port

Job = Callable[..., dict[str, Any]]
Nodes = Callable[..., list[Any]]


def long_job(job: Job, **checkpoint: Any) -> dict[str, Any]:
    return job(training={"maxSteps": 60, "perDeviceTrainBatchSize": 1}, checkpoint=checkpoint)


@pytest.fixture
def start(process: Callable[..., Any], tmp_path: Path) -> Nodes:
    """Start two nodes on one output folder: start(job(…), output=…, order=…, arguments of node 0, variables)."""

    def run(
        document: dict[str, Any],
        output: str = "out",
        order: tuple[int, ...] = (0, 1),
        first: tuple[str, ...] = (),
        held: dict[str, str] | None = None,
    ) -> list[Any]:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port()), "GLOO_SOCKET_IFNAME": "lo"}
        where |= held or {}
        started = {}
        for node in order:
            arguments = ("--nnodes", "2", *(first if node == 0 else ()))
            started[node] = process(document, tmp_path / output, *arguments, JOB_COMPLETION_INDEX=str(node), **where)
            if node == order[0] != 0:
                started[node].wait_for(lambda node=node: "waits for node 0" in started[node].log())
        return [started[node] for node in sorted(order)]

    return run


def kill(node: Any) -> float:
    """Kill all its processes at once, as when its pod is lost. Returns the moment."""
    for pid in [*children(node.pid), node.pid]:
        os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ends(node: Any) -> tuple[int, str]:
    found = node.result()
    return found.code, found.message["reason"]


INTERRUPTED = (75, "Interrupted")
# Within which the loss of a node is noticed: far less than the half hour that torch waits for a peer.
NOTICED_SECONDS = 100


def test_the_loss_of_any_node_interrupts_the_other_and_the_next_start_resumes(
    job: Job, start: Nodes, hold: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    document = long_job(job, saveSteps=5)
    checkpoints = tmp_path / "out/checkpoints"

    nodes = start(document, held=hold(10, rank=1))
    nodes[0].wait_for((checkpoints / "step-00000005").exists)
    at = kill(nodes[1])
    assert ends(nodes[0]) == INTERRUPTED, nodes[0].log()
    assert time.monotonic() - at < NOTICED_SECONDS
    assert "Node 1 was lost" in nodes[0].result().message["message"]

    nodes = start(document, order=(1, 0), held=hold(30))
    nodes[1].wait_for(lambda: list(checkpoints.glob("step-000000[2-5]*")))
    at = kill(nodes[0])
    assert ends(nodes[1]) == INTERRUPTED, nodes[1].log()
    assert time.monotonic() - at < NOTICED_SECONDS
    assert "Node 0 was lost" in nodes[1].result().message["message"]

    ended = [node.result() for node in start(document)]
    assert [end.code for end in ended] == [0, 0]
    assert ended[0].message["artifact"] == ended[1].message["artifact"]
    assert [line["step"] for line in ended[0].metrics] == list(range(1, 61))
    whole = [node.result() for node in start(document, output="whole")]
    kept = "adapter/adapter_model.safetensors"
    assert (ended[0].output / kept).read_bytes() == (whole[0].output / kept).read_bytes()
    assert [line["loss"] for line in ended[0].metrics] == [line["loss"] for line in whole[0].metrics]


def test_a_signal_to_one_node_stops_both_at_the_same_step(
    job: Job, start: Nodes, hold: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    document = long_job(job, saveSteps=1000)
    nodes = start(document, held=hold(10, rank=1))
    log = tmp_path / "out/logs/metrics.jsonl"
    nodes[0].wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3)
    nodes[1].signal(signal.SIGTERM)
    ended = [node.result() for node in nodes]
    assert [(end.code, end.message["reason"]) for end in ended] == [INTERRUPTED] * 2
    assert ended[0].message["progress"]["step"] == ended[1].message["progress"]["step"] < 60
    (checkpoint,) = (tmp_path / "out/checkpoints").glob("step-*")
    assert int(checkpoint.name.removeprefix("step-")) == ended[0].message["progress"]["step"]


def test_a_mistake_on_one_node_is_reported_there_and_interrupts_the_other(job: Job, start: Nodes) -> None:
    with socket.create_server(("", 0)) as taken:
        nodes = start(long_job(job), first=("--port", str(taken.getsockname()[1])))
        assert ends(nodes[0]) == (64, "InvalidSpec"), nodes[0].log()
        assert ends(nodes[1]) == INTERRUPTED, nodes[1].log()


def test_a_killed_process_is_the_failure_of_its_node(
    job: Job, start: Nodes, hold: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    nodes = start(long_job(job, saveSteps=5), held=hold(10, rank=1))
    nodes[0].wait_for((tmp_path / "out/checkpoints/step-00000005").exists)
    os.kill(children(nodes[1].pid)[0], signal.SIGKILL)
    assert ends(nodes[1]) == (70, "InternalError")
    assert ends(nodes[0]) == INTERRUPTED


def test_a_waiting_node_can_be_stopped(job: Job, start: Nodes) -> None:
    (alone,) = start(long_job(job), order=(1,))
    alone.signal(signal.SIGTERM)
    assert ends(alone) == INTERRUPTED
