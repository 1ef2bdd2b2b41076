"""Which processes train together, and which of their endings is the run's."""

import signal
from typing import Any

import pytest
from hone_api.reasons import HoneError
from hone_trainer.distributed.ranks import Rank, find_rendezvous, make_local_ranks
from hone_trainer.distributed.results import ProcessExit, WorkerResult, pick_run_result
from hone_trainer.runtime.environment import limit_devices, set_up_distributed
from hone_trainer.runtime.options import RunOptions

TWO_NODES = {"MASTER_ADDR": "job-0.job", "MASTER_PORT": "29500"}
SUCCEEDED = WorkerResult(outcome="Succeeded")
INTERRUPTED = WorkerResult(outcome="Interrupted")
UNNAMED = WorkerResult(outcome="Failed", message="RuntimeError: connection closed by peer")


def failed(reason: str) -> WorkerResult:
    return WorkerResult(outcome="Failed", reason=reason, message="why", remedy="what to do")


def ending(rank: int, word: WorkerResult | None, code: int | None = 1, at: float = 0.0) -> ProcessExit:
    return ProcessExit(rank, code, at or float(rank), word)


def test_ranks_count_through_the_nodes() -> None:
    here = find_rendezvous(2, TWO_NODES | {"JOB_COMPLETION_INDEX": "1"})
    found = make_local_ranks(here, 4)
    assert [(place.rank, place.local_rank) for place in found] == [(4, 0), (5, 1), (6, 2), (7, 3)]
    assert {(place.world_size, place.local_world_size, place.master_addr, place.master_port) for place in found} == {
        (8, 4, "job-0.job", 29500)
    }
    assert Rank.from_environ(found[2].to_environ()) == found[2]


def test_one_node_needs_no_environment() -> None:
    (place,) = make_local_ranks(find_rendezvous(1, {}), 1)
    assert (place.rank, place.world_size, place.master_addr) == (0, 1, "127.0.0.1")
    assert place.master_port > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "NODE_RANK or JOB_COMPLETION_INDEX is not set"),
        ({"NODE_RANK": "x"}, "NODE_RANK or JOB_COMPLETION_INDEX is 'x'"),
        ({"NODE_RANK": "2"}, "--nnodes is 2, and this is node 2"),
        ({"NODE_RANK": "0", "MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"NODE_RANK": "0", "MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
    ],
)
def test_an_incomplete_environment_is_named(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(HoneError, match="nnodes is 2") as refused:
        find_rendezvous(2, TWO_NODES | changes)
    assert sentence in refused.value.message


@pytest.mark.parametrize(
    ("endings", "outcome", "reason"),
    [
        # an abort after the work is done changes nothing
        ([ending(0, SUCCEEDED, 0), ending(1, None, -signal.SIGABRT)], "Succeeded", None),
        # the process that fails first, with a name
        ([ending(0, UNNAMED, at=1), ending(1, failed("OutOfMemory"), at=2)], "Failed", "OutOfMemory"),
        ([ending(0, failed("DiskFull"), at=2), ending(1, failed("OutOfMemory"), at=1)], "Failed", "OutOfMemory"),
        ([ending(0, failed("DiskFull")), ending(1, INTERRUPTED)], "Failed", "DiskFull"),
        # a process that was stopped by a signal stops the others
        ([ending(0, UNNAMED), ending(1, INTERRUPTED)], "Interrupted", None),
        ([ending(0, UNNAMED), ending(1, None, -signal.SIGTERM)], "Interrupted", None),
        # a killed process is the cause, not the processes that lose it
        ([ending(0, UNNAMED), ending(1, None, -signal.SIGKILL)], "Failed", "InternalError"),
        ([ending(0, None, None), ending(1, UNNAMED)], "Failed", "InternalError"),
    ],
)
def test_the_ending_of_the_run_is_its_cause(endings: list[ProcessExit], outcome: str, reason: str | None) -> None:
    word = pick_run_result(endings)
    assert word.outcome == outcome
    if reason:
        assert word.reason == reason


def test_a_killed_process_is_named_with_its_rank() -> None:
    word = pick_run_result([ending(0, UNNAMED), ending(3, None, -signal.SIGKILL)])
    assert "rank 3 was killed by SIGKILL" in word.message
    assert "memory" in word.message


@pytest.mark.parametrize(
    ("given", "gpus", "seen"),
    [
        ({}, 2, {"CUDA_VISIBLE_DEVICES": "0,1"}),
        ({"HIP_VISIBLE_DEVICES": "4,5,6"}, 2, {"HIP_VISIBLE_DEVICES": "4,5"}),
        ({}, 1, {"CUDA_VISIBLE_DEVICES": "0"}),
        ({"HIP_VISIBLE_DEVICES": "1"}, 0, {"HIP_VISIBLE_DEVICES": "-1", "CUDA_VISIBLE_DEVICES": "-1"}),
    ],
)
def test_torch_sees_as_many_devices_as_the_job_asks_for(given: dict[str, str], gpus: int, seen: dict[str, str]) -> None:
    environ = dict(given)
    limit_devices(environ, gpus)
    assert environ == seen


def test_variables_that_the_user_has_set_are_kept() -> None:
    environ = {"OMP_NUM_THREADS": "8"}
    set_up_distributed(environ, 1)
    assert environ == {"OMP_NUM_THREADS": "8", "GLOO_SOCKET_IFNAME": "lo"}
    set_up_distributed(environ := {}, 2)
    assert environ == {"OMP_NUM_THREADS": "1"}


def test_a_worker_gets_the_same_command_line(tmp_path: Any) -> None:
    from hone_trainer.main import parse_options

    options = RunOptions(tmp_path / "job.yaml", tmp_path / "out", claims={"a": tmp_path}, port=8080, verbose=True)
    assert parse_options(options.to_arguments()) == options
