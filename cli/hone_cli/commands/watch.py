"""`hone watch`: follow a FineTuneJob in the cluster until it ends."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone_cli.client import completion
from hone_cli.commands import options
from hone_cli.ui import job_progress, output
from hone_cli.ui.output import Problem

if TYPE_CHECKING:
    from hone_cli.client.cluster import Cluster

PLURAL = "finetunejobs"
WATCH_SECONDS = 60
# How long the way to the cluster may be broken before it is given up.
PATIENCE_SECONDS = 120

Name = Annotated[str, typer.Argument(help="FineTuneJob.", autocompletion=completion.complete_jobs)]


def command(
    name: Name, namespace: options.Namespace = None, context: options.Context = None, verbose: options.Verbose = False
) -> None:
    """Follow a FineTuneJob in the cluster until it ends. Exits 0 when it succeeded, 1 when it failed."""
    from hone_api.schema.manifests import quote_text

    from hone_cli.client import cluster
    from hone_cli.objects.names import JOB, parse_name

    name = parse_name(name, JOB, "watch")
    jobs = follow_job(cluster.connect(context, namespace), name)
    job = show_live(jobs) if output.is_terminal() else show_lines(jobs)
    if job_progress.has_succeeded(job):
        output.print_line(f"✓ {name} succeeded", color="green")
        for line in job_progress.describe_result(job):
            output.print_line(f"  {line}")
        reference = f"{{fineTuneJob: {{name: {quote_text(name)}}}}}"
        output.print_line(f"  serve it with an InferenceService: spec: {{model: {reference}}}")
        return
    output.print_line(f"✗ {name} failed: {job_progress.explain_failure(job)}", color="red")
    raise typer.Exit(1)


def show_live(jobs: Iterator[job_progress.Job]) -> job_progress.Job:
    """Show a live progress bar, with the reasons for waiting above it. Return the job at its end."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    waiting = None
    with Progress(*columns, console=output.make_console()) as bar:
        task = bar.add_task("Pending", total=100, figures="")
        for job in jobs:
            if job_progress.has_succeeded(job) is not None:
                return job
            seen = job_progress.make_progress_line(job)
            bar.update(task, description=seen.stage, completed=seen.percent, figures=seen.figures)
            if seen.waiting and seen.waiting != waiting:
                bar.console.print(seen.waiting, soft_wrap=True)
            waiting = seen.waiting
    raise AssertionError("follow ends only with the job")


def show_lines(jobs: Iterator[job_progress.Job]) -> job_progress.Job:
    """Print one line for every change. Return the job at its end."""
    last = ""
    for job in jobs:
        if job_progress.has_succeeded(job) is not None:
            return job
        seen = job_progress.make_progress_line(job)
        line = "  ".join(part for part in (seen.stage, f"{seen.percent}%", seen.figures, seen.waiting) if part)
        if line != last:
            output.print_line(line)
        last = line
    raise AssertionError("follow ends only with the job")


def follow_job(connection: "Cluster", name: str) -> Iterator[job_progress.Job]:
    """Yield the job at every change, without end. Survives expired watches and outages of up to PATIENCE_SECONDS.

    Raises Problem when the job does not exist, was deleted, or the cluster stays unreachable.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    from hone_cli.client import cluster

    seen_at: float | None = None
    while True:
        try:
            for job in _follow_watch(connection, name):
                seen_at = time.monotonic()
                yield job
        except (ApiException, HTTPError) as error:
            status = error.status if isinstance(error, ApiException) else None
            if status == 404 and seen_at is not None:
                raise Problem(f"FineTuneJob {name} was deleted", "Its claim, with what was saved, is kept.") from error
            lasting = status is not None and status not in (410, 429) and status < 500
            if seen_at is None or lasting or time.monotonic() - seen_at > PATIENCE_SECONDS:
                with cluster.translate_errors(f"FineTuneJob {name} in namespace {connection.namespace}"):
                    raise
            if status != 410:
                output.print_hint("The way to the cluster is broken; trying again.")
        time.sleep(1)


def _follow_watch(connection: "Cluster", name: str) -> Iterator[job_progress.Job]:
    """Yield the job now, and at every change until the API server ends the watch."""
    from kubernetes import client, watch

    from hone_cli.client import cluster

    objects: Any = client.CustomObjectsApi(connection.api)
    where = (cluster.GROUP, cluster.VERSION, connection.namespace, PLURAL)
    job = objects.get_namespaced_custom_object(*where, name, _request_timeout=cluster.TIMEOUT)
    yield job
    watcher: Any = watch.Watch()  # type: ignore[no-untyped-call]
    events = watcher.stream(
        objects.list_namespaced_custom_object,
        *where,
        field_selector=f"metadata.name={name}",
        resource_version=job["metadata"]["resourceVersion"],
        timeout_seconds=WATCH_SECONDS,
        _request_timeout=(cluster.TIMEOUT[0], WATCH_SECONDS + cluster.TIMEOUT[1]),
    )
    for event in events:
        if event["type"] == "DELETED":
            return
        if event["type"] in ("ADDED", "MODIFIED"):
            yield event["object"]
