"""Hone's operator against JobSet, Kubeflow Trainer and a bare kopf handler, in turns on one API server.

In rounds, from creating objects to their Jobs: time, memory, CPU. Then once, with KWOK, from creation to the end: API
requests, CPU. Goals: 50 ms to the Job of one object, 1,000 in no longer than JobSet takes, 12 writes in the life of a
job. With `--checkout`, Hone is compared with another Hone alone. Needs the local cluster's programs (`make cluster-up`
builds them), Go and openssl.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parents[1] / "tests/cluster")]

import build_peers  # noqa: E402
from apiserver import ApiServer, api_server  # noqa: E402
from client import Arrivals, Client, Refused, make_names  # noqa: E402
from common import print_comparison  # noqa: E402
from contenders import (  # noqa: E402
    CONTENDERS,
    OTHER,
    add_checkout,
    install_contenders,
    install_runtime,
    run_contender,
)
from simulation import simulate_pods  # noqa: E402
from usage import Audit, count_writes, read_cpu_seconds, read_resident_mib  # noqa: E402

SECONDS_TO_SETTLE = 60
SECONDS_QUIET = 5
POD_SECONDS = 3
FIGURES = {
    "first": "ms from 1 object to its Job, p50",
    "slow": "ms from 1 object to its Job, p99",
    "all": "s from {many} objects to the last Job",
    "memory": "MiB resident after that",
    "cpu": "ms of CPU an object, for that",
    "life_requests": "API requests in the life of a job",
    "life_writes": "writes among them",
    "life_cpu": "ms of CPU in the life of a job",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--singles", type=int, default=100, help="objects created one by one, a round")
    parser.add_argument("--many", type=int, default=1000, help="objects created at once, a round")
    parser.add_argument("--lives", type=int, default=100, help="objects whose pods run to their end")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--checkout", type=Path, metavar="FOLDER", help="of another Hone, after `make install` in it")
    options = parser.parse_args()
    if options.checkout:
        add_checkout(options.checkout)
        options.contenders = ["hone", OTHER]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    if not options.checkout:
        print(", ".join(f"{name} {build_peers.read_version(name)}" for name in build_peers.MODULES), flush=True)
    found: dict[str, dict[str, list[float]]] = {figure: {} for figure in FIGURES}
    requests: dict[str, Counter[str]] = {}
    for number in range(options.rounds):
        turns = [name for name in options.contenders if name != "prepared"]  # up to its first Job, that is Hone
        with run_contenders_server(options.contenders) as (server, _):
            for name in turns[:: -1 if number % 2 else 1]:
                add_figures(found, name, measure_creations(server, name, options.singles, options.many))
    if options.lives:
        running = run_contenders_server(options.contenders)
        with running as (server, audit), simulate_pods(server, pod_seconds=POD_SECONDS):
            for name in options.contenders:
                figures, requests[name] = measure_lives(server, audit, name, options.lives)
                add_figures(found, name, figures)
    for figure, words in FIGURES.items():
        for name, values in found[figure].items():
            if name != "hone":
                unit = words.format(many=options.many)
                print_comparison(unit, "", found[figure]["hone"], values, CONTENDERS[name].title)
    for name, counted in requests.items():
        listed = ", ".join(f"{request} {count / options.lives:.2f}" for request, count in counted.most_common())
        print(f"a life of {CONTENDERS[name].title}: {listed}")


@contextmanager
def run_contenders_server(names: Iterable[str]) -> Iterator[tuple[ApiServer, Audit]]:
    """Run an API server with the contenders' definitions, and its log. Operators see the packages of their images."""
    os.environ["PYTHONPATH"] = str(HERE / "as_shipped")
    with tempfile.TemporaryDirectory() as folder:
        audit = Audit(Path(folder))
        users = dict.fromkeys([*CONTENDERS, "controllers", "scheduler", "kwok"], ("system:masters",))
        with api_server(Path(folder), users=users, flags=audit.flags) as server:
            install_contenders(server, names)
            yield server, audit


def add_figures(found: dict[str, dict[str, list[float]]], name: str, figures: dict[str, float]) -> None:
    summary = ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
    print(f"{time.strftime('%X')} {name}: {summary}", file=sys.stderr, flush=True)
    for figure, value in figures.items():
        found[figure].setdefault(name, []).append(value)


def measure_creations(server: ApiServer, name: str, singles: int, many: int) -> dict[str, float]:
    """Measure from objects to their Jobs, when nothing else happens to the Jobs."""
    contender, client = CONTENDERS[name], Client(server.url)
    space = create_namespace(client)
    with run_contender(name, server) as pids:
        warm_up(client, name, space)
        jobs = Arrivals(client, f"/apis/batch/v1/namespaces/{space}/jobs")
        took = []
        for each in make_names("single", singles):
            started = time.monotonic()
            client.create(contender.path(space), contender.body(each))
            took.append(1000 * (jobs.wait([each], SECONDS_TO_SETTLE) - started))
            time.sleep(0.05)
        names = make_names("many", many)
        time.sleep(SECONDS_QUIET)
        before, started = read_cpu_seconds(pids), time.monotonic()
        client.create_all(contender.path(space), map(contender.body, names))
        last = jobs.wait(names, SECONDS_TO_SETTLE)
        time.sleep(SECONDS_QUIET)
        cpu = 1000 * (read_cpu_seconds(pids) - before) / many
        memory = read_resident_mib(pids)
    return {
        "first": statistics.median(took),
        "slow": statistics.quantiles(took, n=100)[-1] if singles > 1 else took[0],
        "all": last - started,
        "memory": memory,
        "cpu": cpu,
    }


def measure_lives(server: ApiServer, audit: Audit, name: str, count: int) -> tuple[dict[str, float], Counter[str]]:
    """Measure objects whose pods run and end, until the contender has reported the end."""
    contender, client = CONTENDERS[name], Client(server.url)
    space = create_namespace(client)
    with run_contender(name, server) as pids:
        warm_up(client, name, space)
        time.sleep(2 * POD_SECONDS + SECONDS_QUIET)  # until its life, maybe of two Jobs, is over
        if name == "bare":  # it reports no end
            ends = Arrivals(client, f"/apis/batch/v1/namespaces/{space}/jobs", CONTENDERS["trainer"].ended)
        else:
            ends = Arrivals(client, contender.path(space), contender.ended)
        names, since, before = make_names("life", count), audit.position(), read_cpu_seconds(pids)
        client.create_all(contender.path(space), map(contender.body, names))
        ends.wait(names, SECONDS_TO_SETTLE)
        time.sleep(SECONDS_QUIET)
        cpu = 1000 * (read_cpu_seconds(pids) - before) / count
    requests = audit.requests(name, since)
    figures = {
        "life_requests": requests.total() / count,
        "life_writes": count_writes(requests) / count,
        "life_cpu": cpu,
    }
    return figures, requests


def create_namespace(client: Client) -> str:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "benchmark-"}}
    return str(client.create("/api/v1/namespaces", body)["metadata"]["name"])


def warm_up(client: Client, name: str, space: str) -> None:
    """Wait until the contender has made a Job. It refuses objects until its webhooks answer."""
    jobs = Arrivals(client, f"/apis/batch/v1/namespaces/{space}/jobs")
    (first,) = make_names("warmup", 1)
    contender = CONTENDERS[name]
    deadline = time.monotonic() + SECONDS_TO_SETTLE
    while True:
        try:
            if name == "trainer":
                install_runtime(client)
            client.create(contender.path(space), contender.body(first))
            break
        except Refused:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
    jobs.wait([first], SECONDS_TO_SETTLE)


if __name__ == "__main__":
    main()
