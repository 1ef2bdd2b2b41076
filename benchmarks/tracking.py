"""What an experiment tracker costs training, by the state of its server, in runs that log every step.

The servers: a dead one refuses connections, a silent one accepts them and never answers, a slow one answers after 5 s,
a healthy one is MLflow's. Each kind is compared with a run without a tracker of the same round; the order changes every
round. Four things are measured between the begin and the end of training:

- the time that the training thread spends in what trackers add to it: it appends each line to the journal, and forces
  the journal to the disk at a checkpoint. As a ratio: the run with it to the run without it.
- the CPU of the training process, all threads, against the run without a tracker;
- the CPU of the tracker's own process;
- the seconds of training against the run without a tracker. On two cores the spread of this one is 15 %.

Then the share of a core is measured that the tracker's process gets where both want the same core: a process that
computes all the time at the tracker's priority against another, both in one session, as they are.

Goal: at most 1.01 each. MLflow's server is installed into the user's cache, once, and runs at the lowest priority.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import yaml
from common import format_spread, make_model, make_rows, run
from hone_trainer.main import main as trainer
from hone_trainer.tracking import trackers
from hone_trainer.tracking.journal import Journal
from hone_trainer.training.callbacks import ReportCallback
from hone_trainer.training.tracked_run import JournalCallback

sys.path.append(str(Path(__file__).parents[1] / "tests/trainer/tracking"))

from tracking_servers import MLflowServer, find_free_port, open_silent_server

ANSWER_SECONDS = 5.0
CONTENTION_SECONDS = 3.0
# Two of these compute on one core at the same time. `setup` is what each does before.
COMPUTE = """
import os, time
{setup}
os.sched_setaffinity(0, {{0}})
while time.monotonic() < {begin}:
    time.sleep(0.01)
used = time.process_time()
while time.monotonic() < {end}:
    pass
print(time.process_time() - used)
"""
MEASURES = ("runtime_seconds", "callback_seconds", "cpu_seconds", "tracker_cpu_seconds")


def main() -> None:
    if sys.argv[1:2] == ["--measured"]:
        measure_run(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, open_servers(Path(name)) as servers:
        folder = Path(name)
        make_model(folder / "model")
        make_rows(folder / "train.jsonl", 2 * options.steps)
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in servers}
        for number in range(options.rounds):
            order = [*servers] if number % 2 == 0 else [*reversed(servers)]
            for kind in order:
                found[kind].append(train(folder, servers[kind], options.steps))
    print(f"no tracker: training {format_spread([each['runtime_seconds'] for each in found['none']])} s")
    for kind in servers:
        if kind != "none":
            print_kind(kind, found[kind], found["none"], options.steps)
    shares = [measure_contention() for _ in range(options.rounds)]
    print(f"share of a core that both want: {format_spread(shares)} for the tracker's process")


def print_kind(kind: str, runs: list[dict[str, float]], without: list[dict[str, float]], steps: int) -> None:
    """Print what trackers of one kind cost; `without` are the runs of the same rounds without a tracker."""
    of = {name: [each[name] for each in runs] for name in MEASURES}
    callbacks = [
        total / (total - spent) for total, spent in zip(of["runtime_seconds"], of["callback_seconds"], strict=True)
    ]
    step = 1e6 * statistics.median(of["callback_seconds"]) / steps
    print(f"{kind} tracker: training thread, ratio {format_spread(callbacks)}; {step:.0f} microseconds a step")
    for name, title in (("cpu_seconds", "CPU of the training process"), ("runtime_seconds", "seconds of training")):
        ratios = [one[name] / other[name] for one, other in zip(runs, without, strict=True)]
        print(f"  {title}, ratio {format_spread(ratios)}")
    shares = [
        used / total / (os.cpu_count() or 1)
        for used, total in zip(of["tracker_cpu_seconds"], of["runtime_seconds"], strict=True)
    ]
    idle = "all of it at idle priority" if all(each["is_idle"] for each in runs) else "NOT at idle priority"
    used = format_spread(of["tracker_cpu_seconds"])
    print(f"  CPU of its process {used} s, {statistics.median(shares):.1%} of all cores, {idle}", flush=True)


def measure_contention() -> float:
    """Return the share of a core that a tracker's process gets where training wants it too."""
    begin = time.monotonic() + CONTENTION_SECONDS
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMPUTE.format(setup=setup, begin=begin, end=begin + CONTENTION_SECONDS)],
            stdout=subprocess.PIPE,
        )
        for setup in ("", "from hone_trainer.tracking.process import lower_priority; lower_priority()")
    ]
    training, tracker = (float(process.communicate()[0]) for process in processes)
    return tracker / (training + tracker)


@contextmanager
def open_servers(folder: Path) -> Iterator[dict[str, str | None]]:
    """Yield the address of each kind of tracker."""
    healthy = MLflowServer(folder)
    healthy.start()
    lower_priority()
    slow = SlowServer(healthy.url)
    try:
        with open_silent_server() as silent:
            dead = f"http://127.0.0.1:{find_free_port()}"
            yield {"none": None, "dead": dead, "silent": silent, "slow": slow.url, "healthy": healthy.url}
    finally:
        slow.shutdown()
        healthy.stop()


def lower_priority() -> None:
    """Let the server, which runs on another machine in reality, compute only where no run wants to."""
    for process in psutil.Process().children(recursive=True):
        for thread in process.threads():
            os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))


class SlowServer(ThreadingHTTPServer):
    """Answers as another server does, after ANSWER_SECONDS."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        super().__init__(("127.0.0.1", 0), SlowRequest)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class SlowRequest(BaseHTTPRequestHandler):
    """A request that is forwarded late."""

    server: SlowServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        time.sleep(ANSWER_SECONDS)
        headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        request = urllib.request.Request(self.server.upstream + self.path, body, headers, method=self.command)
        try:
            with urllib.request.urlopen(request) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        with suppress(OSError):  # a run that has ended does not wait
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_POST = do_PATCH = do_GET

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


def train(folder: Path, server: str | None, steps: int) -> dict[str, float]:
    """Return what was measured of a training."""
    output, result = folder / "out", folder / "measured.json"
    shutil.rmtree(output, ignore_errors=True)
    training = {"profile": "none", "perDeviceTrainBatchSize": 2, "maxSteps": steps, "loggingSteps": 1, "bf16": False}
    spec = {
        "model": {"claim": {"name": "here", "path": "model"}},
        "dataset": {"claim": {"name": "here", "path": "train.jsonl"}},
        "training": training,
        "checkpoint": {"saveSteps": steps},
        "resources": {"gpus": 0},
    }
    tracking = {"tracking": {"mlflow": {"uri": server}}} if server else {}
    job = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "benchmark"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job | {"spec": spec | tracking}))
    arguments = ["run", str(folder / "job.yaml"), "--output", str(output), "--claim", f"here={folder}", "--port", "0"]
    run([sys.executable, __file__, "--measured", str(result), *arguments])
    runtime = float(json.loads((output / "manifest.json").read_text())["metrics"]["trainRuntime"])
    measured: dict[str, float] = json.loads(result.read_text())
    return measured | {"runtime_seconds": runtime}


def measure_run(result: Path, arguments: list[str]) -> None:
    """Run the trainer in this process, and write what trackers cost between the begin and the end of training."""
    spent: list[float] = []
    marks: list[tuple[float, float]] = []
    is_idle: list[bool] = []

    def mark() -> None:
        children = [each for each in psutil.Process().children() if "hone_trainer.tracking" in str(each.cmdline())]
        used = [each.cpu_times() for each in children]
        marks.append((time.process_time(), sum(each.user + each.system for each in used)))
        is_idle.extend(os.sched_getscheduler(each.pid) == os.SCHED_IDLE for each in children)

    for kind, name in ((JournalCallback, "on_log"), (Journal, "sync")):
        setattr(kind, name, add_time(getattr(kind, name), spent))
    for name in ("on_train_begin", "on_train_end"):
        setattr(ReportCallback, name, call_first(mark, getattr(ReportCallback, name)))
    trackers.CATCH_UP_SECONDS = 1.0  # after training: not measured
    if code := trainer(arguments):
        sys.exit(code)
    (cpu_before, tracker_before), (cpu_after, tracker_after) = marks
    measured = {
        "callback_seconds": sum(spent),
        "cpu_seconds": cpu_after - cpu_before,
        "tracker_cpu_seconds": tracker_after - tracker_before,
        "is_idle": all(is_idle[len(is_idle) // 2 :]),
    }
    result.write_text(json.dumps(measured))


def call_first(action: Callable[[], None], method: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method, before which `action` is called."""

    def call(*given: Any, **named: Any) -> Any:
        action()
        return method(*given, **named)

    return call


def add_time(method: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return the method, with the time of each call appended to `spent`."""

    def call(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*given, **named)
        finally:
            spent.append(time.perf_counter() - began)

    return call


if __name__ == "__main__":
    main()
