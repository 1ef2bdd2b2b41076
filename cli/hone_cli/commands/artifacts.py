"""`hone pull`, `hone report` and `hone push`: bring artifacts and reports to this machine, and artifacts from it."""

import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from hone.errors import ClientError
from hone.local import requirements
from hone_api.containers import PUSH

from hone_cli.commands import options
from hone_cli.ui import child_process, output

if TYPE_CHECKING:
    from hone.artifacts.target import Sizes
    from hone.kube.cluster import Cluster, Object

Folder = Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Folder to fill (default: the job's name).")]
File = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Save the report here (default: JOB-report.html).")
]
Root = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an artifact, with its manifest.json.")]
Addresses = Annotated[
    list[str],
    typer.Argument(metavar="ADDRESS...", help="s3://BUCKET/FOLDER, hf://OWNER/NAME or oci://REGISTRY/REPOSITORY:TAG."),
]
Public = Annotated[bool, typer.Option("--public", help="Create repositories on the hub that everybody may read.")]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Save the report, and do not open it.")]


def pull_command(
    job: options.JobName,
    folder: Folder = None,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Download the artifact of a FineTuneJob, and prove every file. Run it again to continue after an interruption."""
    from hone.artifacts import pull, target, transfer
    from hone.objects.views import require_artifact

    connection, name, body = _find_job("pull", job, context, namespace)
    artifact = require_artifact(body)
    root = folder or Path(name)
    with target.lock_folder(root), transfer.open_session(connection, body) as session, show_progress_bar() as begin:
        pull.pull_artifact(session, root, artifact["digest"], begin)
    output.print_line(f"✓ {root} is the {artifact['kind']} of {name}: {artifact['digest']}", color="green")
    output.print_next_step("Serve it here with", f"hone serve {root}")


def report_command(
    job: options.JobName,
    file: File = None,
    no_browser: NoBrowser = False,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Download the report of a FineTuneJob, and open it in the browser."""
    from hone.artifacts import target, transfer
    from hone.reports import Report

    connection, name, body = _find_job("report", job, context, namespace)
    place = file or Path(f"{name}-report.html")
    if not place.parent.is_dir():
        raise ClientError(f"--output {place}: {place.parent} is no folder", "Create it, or name another FILE.")
    with transfer.open_session(connection, body) as session:
        content = session.fetch_small(target.REPORT_FILE)
    Report(name, content).save(place)
    output.print_line(f"✓ {place}", color="green")
    if not (no_browser or file) and not webbrowser.open(place.resolve().as_uri()):
        output.print_hint("No browser was found: open the file yourself.")


def push_command(root: Root, addresses: Addresses, public: Public = False, verbose: options.Verbose = False) -> None:
    """Copy an artifact to buckets, registries and the hub, and verify it there. Run it again to continue.

    Credentials are those of the environment, as for the tools of AWS, docker and the hub.
    """
    requirements.require_modules("trainer", "minio", "huggingface_hub")
    arguments = [str(root), *addresses, *(["--public"] if public else [])]
    code = child_process.run_module(
        PUSH, arguments, on_stop=lambda: output.print_hint("Stopping: run the same command again to continue.")
    )
    raise typer.Exit(code)


def _find_job(command: str, job: str, context: str | None, namespace: str | None) -> "tuple[Cluster, str, Object]":
    """Return the cluster, and the name and the FineTuneJob that an argument of `command` names. Raises ClientError."""
    from hone.artifacts import transfer
    from hone.kube import cluster
    from hone.objects.names import JOB, parse_name

    name = parse_name(job, JOB, command)
    connection = cluster.connect(context, namespace)
    return connection, name, transfer.find_job(connection, name)


@contextmanager
def show_progress_bar() -> "Iterator[Callable[[Sizes], Callable[[str, int], None]]]":
    """Yield a function that starts the bar with the sizes, and returns one that advances it by a file's bytes."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.make_console(stderr=True)) as bar:

        def begin(sizes: "Sizes") -> Callable[[str, int], None]:
            task = bar.add_task("", total=sizes.total, completed=sizes.here)
            return lambda name, count: bar.update(task, advance=count, description=name)

        yield begin
