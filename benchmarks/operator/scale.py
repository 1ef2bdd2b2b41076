"""Hone's operator with many objects: memory, a restart, the cost of a pass, the progress of many running jobs.

Goals: with 5,000 finished objects at most 120 MiB, a restart that writes nothing and is ready in 15 s, passes that cost
what they cost with 100; the progress of 500 running jobs for less than 10 % of a core, with statuses no more than 15 s
old. With `--checkout`, another Hone is measured after this one. Needs the local cluster's programs (`make cluster-up`
builds them), Go and openssl.
"""

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parents[1] / "tests/cluster")]

import urllib3  # noqa: E402
from apiserver import ApiServer, free_ports, operator, processes  # noqa: E402
from client import Arrivals, Client, Object, make_names  # noqa: E402
from compare import create_namespace, run_contenders_server  # noqa: E402
from contenders import CONTENDERS, find_python, install_hone_crds  # noqa: E402
from finished_jobs import FinishedJob  # noqa: E402
from hone_operator.kube.pod_poller import CLOSE_SECONDS, LATER_EVERY_SECONDS  # noqa: E402
from simulation import simulate_pods  # noqa: E402
from usage import Audit, count_writes, read_cpu_seconds, read_resident_mib  # noqa: E402

HONE = CONTENDERS["hone"]
FEW = 100
PASSES_EACH = 10
SECONDS_TO_SETTLE = 600
SECONDS_QUIET = 20
POLLED_SECONDS = 60
SAMPLES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finished", type=int, default=5000)
    parser.add_argument("--running", type=int, default=500)
    parser.add_argument("--checkout", type=Path, metavar="FOLDER", help="of another Hone, after `make install` in it")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    for checkout in (None, options.checkout) if options.checkout else (None,):
        print(f"Hone of {checkout or HERE.parents[1]}:", flush=True)
        measure_finished(checkout, options.finished)
        if options.running:
            with run_contenders_server(["hone"]) as (server, _), simulate_pods(server, pod_seconds=86400):
                measure_progress(server, checkout, options.running)


def measure_finished(checkout: Path | None, count: int) -> None:
    """Measure a restart and passes with few and with many finished objects."""
    with run_contenders_server(["hone"]) as (server, audit):
        space = create_namespace(Client(server.url))
        model = run_one_job(server, checkout, space)
        made = make_names("ended", count)
        model.copies(made[:FEW])
        measure_restart(server, checkout, audit, FEW)
        measure_reconciles(server, checkout, FEW)
        model.copies(made[FEW:])
        measure_restart(server, checkout, audit, count)
        measure_reconciles(server, checkout, count)


def run_one_job(server: ApiServer, checkout: Path | None, space: str) -> FinishedJob:
    (name,) = make_names("model", 1)
    client = Client(server.url)
    with simulate_pods(server, pod_seconds=1), run_operator(server, checkout):
        ends = Arrivals(client, HONE.path(space), HONE.ended)
        client.create(HONE.path(space), HONE.body(name))
        ends.wait([name], SECONDS_TO_SETTLE)
        time.sleep(SECONDS_QUIET / 4)
    return FinishedJob(client, space, name)


def measure_restart(server: ApiServer, checkout: Path | None, audit: Audit, count: int) -> None:
    """Measure a start with this many finished, settled objects."""
    since = audit.position()
    with run_operator(server, checkout) as (pid, seconds):
        time.sleep(SECONDS_QUIET)
        memory, cpu = read_resident_mib([pid]), read_cpu_seconds([pid])
        written = count_writes(audit.requests("hone", since))
    print(
        f"{count} finished: ready in {seconds:.1f} s, {cpu:.1f} s of CPU, {memory:.0f} MiB, {written} writes",
        flush=True,
    )


def measure_reconciles(server: ApiServer, checkout: Path | None, count: int) -> None:
    """Measure a pass over an unfinished object, with this many finished ones in the cluster."""
    client = Client(server.url)
    space = create_namespace(client)
    names = make_names("pass", FEW)
    with run_operator(server, checkout) as (pid, _):
        jobs = Arrivals(client, f"/apis/batch/v1/namespaces/{space}/jobs")
        took = []
        for name in names:
            started = time.monotonic()
            client.create(HONE.path(space), HONE.body(name))
            took.append(1000 * (jobs.wait([name], SECONDS_TO_SETTLE) - started))
        time.sleep(SECONDS_QUIET)
        before = read_cpu_seconds([pid])
        for number in range(PASSES_EACH):
            for name in names:
                touch = {"metadata": {"annotations": {"benchmark": str(number)}}}
                client.patch(f"{HONE.path(space)}/{name}", touch)
            time.sleep(0.5)
        time.sleep(2)
        each = 1000 * (read_cpu_seconds([pid]) - before) / (len(names) * PASSES_EACH)
    print(
        f"beside {count} finished: {statistics.median(took):.1f} ms to the Job of one, {each:.2f} ms of CPU a pass",
        flush=True,
    )


def measure_progress(server: ApiServer, checkout: Path | None, count: int) -> None:
    """Measure many trainers that are asked for their progress."""
    client = Client(server.url)
    space = create_namespace(client)
    trainers: list[list[object]] = [[sys.executable, HERE / "trainers.py"]]
    with processes(trainers, {}), run_operator(server, checkout) as (pid, _):
        progress_arrivals = Arrivals(
            client, HONE.path(space), lambda found: (found.get("status") or {}).get("progress")
        )
        names = make_names("run", count)
        client.create_all(HONE.path(space), map(HONE.body, names))
        progress_arrivals.wait(names, SECONDS_TO_SETTLE)
        time.sleep(CLOSE_SECONDS + LATER_EVERY_SECONDS)  # some are asked more often at first
        before, started = read_cpu_seconds([pid]), time.monotonic()
        ages: list[float] = []
        for _ in range(SAMPLES):
            time.sleep(POLLED_SECONDS / SAMPLES)
            ages += [read_age_seconds(each) for each in client.get(HONE.path(space))["items"]]
        share = (read_cpu_seconds([pid]) - before) / (time.monotonic() - started)
        memory = read_resident_mib([pid])
    print(
        f"{count} running: {100 * share:.1f} % of a core, statuses {statistics.median(ages):.1f} s old "
        f"(at most {max(ages):.1f}), {memory:.0f} MiB"
    )


def read_age_seconds(found: Object) -> float:
    updated = datetime.fromisoformat(found["status"]["progress"]["updatedAt"])
    return (datetime.now(UTC) - updated).total_seconds()


@contextmanager
def run_operator(server: ApiServer, checkout: Path | None) -> Iterator[tuple[int, float]]:
    """Run the operator as a process until it is ready; yield its pid and the seconds until then."""
    install_hone_crds(server, checkout)
    (port,) = free_ports(1)
    ready = urllib3.PoolManager(retries=False)
    started = time.monotonic()
    arguments = ("--listen", f"127.0.0.1:{port}", "--log-level", "warning")
    log, python = server.folder / "hone.log", find_python(checkout)
    with operator(server.kubeconfig_of("hone"), *arguments, log=log, python=python) as process:
        while time.monotonic() < started + SECONDS_TO_SETTLE:
            try:
                if ready.request("GET", f"http://127.0.0.1:{port}/readyz").status == 200:
                    break
            except urllib3.exceptions.HTTPError:
                pass
            time.sleep(0.1)
        yield process.pid, time.monotonic() - started


if __name__ == "__main__":
    main()
