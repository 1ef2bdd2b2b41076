"""`hone watch`: follow a FineTuneJob in the cluster until it ends."""

from collections.abc import Iterator
from typing import Annotated

import typer
from hone.objects import job_progress

from hone_cli.commands import options
from hone_cli.ui import completion, output

Name = Annotated[str, typer.Argument(help="FineTuneJob.", autocompletion=completion.complete_jobs)]


def command(
    name: Name, namespace: options.Namespace = None, context: options.Context = None, verbose: options.Verbose = False
) -> None:
    """Follow a FineTuneJob in the cluster until it ends. Exits 0 when it succeeded, 1 when it failed."""
    from hone.kube import cluster, job_watch
    from hone.objects.names import JOB, parse_name
    from hone_api.schema.manifests import quote_text

    name = parse_name(name, JOB, "watch")
    jobs = job_watch.follow_job(cluster.connect(context, namespace), name)
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
