"""`hone tensorboard`: the real TensorBoard on a folder, and on a job's claim, which grows meanwhile."""

import json
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from artifact_cluster import run, serve_artifact, start
from fake_cluster import CORE, FakeCluster
from hone.errors import ClientError
from hone_cli.tensorboard.event_copy import EventStream, measure_files
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

PODS = f"{CORE}/pods"


def write_steps(writer: EventFileWriter, steps: range) -> None:
    for step in steps:
        value = Summary.Value(tag="train/loss", simple_value=1.0 / step)
        writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))
    writer.flush()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with serve_artifact(tmp_path, monkeypatch) as found:
        yield found


def wait_for(ready: Callable[[], Any], started: subprocess.Popen[str], seen: list[str]) -> Any:
    """Wait until `ready` returns something true, and return it."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert started.poll() is None, "".join(seen)
        if found := ready():
            return found
        time.sleep(0.1)
    raise AssertionError("".join(seen))


def read_lines(started: subprocess.Popen[str]) -> list[str]:
    """Return the lines that the command prints, as they come."""
    seen: list[str] = []
    assert started.stderr
    threading.Thread(target=seen.extend, args=(started.stderr,), daemon=True).start()
    return seen


def find_address(seen: list[str]) -> str | None:
    found = re.search(r"http://localhost:\d+", "".join(seen))
    return found[0] if found else None


def read_curve(address: str, run: str = ".") -> list[int]:
    try:
        url = f"{address}/data/plugin/scalars/scalars?tag=train%2Floss&run={run}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return [step for _, step, _ in json.load(answer)]
    except (OSError, ValueError):
        return []


def test_a_folder_is_shown(tmp_path: Path) -> None:
    (tmp_path / "out/logs").mkdir(parents=True)
    writer = EventFileWriter(str(tmp_path / "out/logs"))
    write_steps(writer, range(1, 4))
    with start(tmp_path, "tensorboard", "out") as started:
        seen = read_lines(started)
        address = wait_for(lambda: find_address(seen), started, seen)
        wait_for(lambda: read_curve(address) == [1, 2, 3], started, seen)
        started.send_signal(signal.SIGINT)
        assert started.wait(60) == 0


def test_a_job_is_shown_while_it_trains_and_ctrl_c_removes_everything(fake: FakeCluster, tmp_path: Path) -> None:
    assert fake.claim
    (fake.claim / "logs").mkdir()
    writer = EventFileWriter(str(fake.claim / "logs"))
    write_steps(writer, range(1, 4))
    with start(tmp_path, "tensorboard", "faq") as started:
        seen = read_lines(started)
        address = wait_for(lambda: find_address(seen), started, seen)
        wait_for(lambda: read_curve(address) == [1, 2, 3], started, seen)
        write_steps(writer, range(4, 6))
        wait_for(lambda: read_curve(address) == [1, 2, 3, 4, 5], started, seen)
        started.send_signal(signal.SIGINT)
        assert started.wait(60) == 0, "".join(seen)
    assert not [path for path in fake.objects if path.startswith(PODS)]
    assert not [*tmp_path.glob("hone-tensorboard-*")]


@pytest.mark.parametrize(
    ("pod", "how"),
    [
        (None, "was deleted"),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "phase Failed (Evicted: low on memory)"),
    ],
)
def test_the_command_ends_when_its_pod_is_gone(
    fake: FakeCluster, tmp_path: Path, pod: dict[str, str] | None, how: str
) -> None:
    def lose_pod(method: str, path: str) -> int | None:
        if not path.endswith("/exec"):
            return None
        body = fake.objects.pop(path.removesuffix("/exec"))
        if pod:
            fake.objects[path.removesuffix("/exec")] = body | {"status": pod}
        return 404

    fake.reply = lose_pod
    code, _, err = run(tmp_path, "tensorboard", "faq")
    assert code == 1, err
    assert how in " ".join(err.split())
    assert "Run the same command again" in err
    assert not [path for path in fake.objects if path.startswith(PODS)]
    assert not [*tmp_path.glob("hone-tensorboard-*")]


@given(
    pieces=st.lists(st.tuples(st.sampled_from(["a.tfevents.1", "b/c.tfevents.2"]), st.binary(min_size=1)), max_size=9),
    size=st.integers(1, 40),
)
def test_a_stream_in_pieces_of_any_size_is_written_completely(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, bytes]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("events")
    data = b""
    for path, content in pieces:
        data += json.dumps({"path": path, "size": len(content)}).encode() + b"\n" + content + b"{}\n"
    stream = EventStream(folder)
    for begin in range(0, len(data), size):
        stream.feed(data[begin : begin + size])
    wanted: dict[str, bytes] = {}
    for path, content in pieces:
        wanted[path] = wanted.get(path, b"") + content
    assert {path: (folder / path).read_bytes() for path in wanted} == wanted
    assert measure_files(folder) == {path: len(content) for path, content in wanted.items()}


@pytest.mark.parametrize(
    "line",
    [
        {"path": "../x.tfevents.1", "size": 3},
        {"path": "/x.tfevents.1", "size": 3},
        {"path": "a//x.tfevents.1", "size": 3},
        {"path": ".bashrc", "size": 3},
        {"path": "x.tfevents.1", "size": -3},
        {"path": "x.tfevents.1", "size": True},
        {"path": 5, "size": 3},
        {"size": 3},
        [1],
        "text",
    ],
)
def test_what_is_no_event_file_is_refused(tmp_path: Path, line: object) -> None:
    with pytest.raises(ClientError, match="no event file"):
        EventStream(tmp_path / "inner").feed(json.dumps(line).encode() + b"\nabc")
    assert [*tmp_path.iterdir()] == []
