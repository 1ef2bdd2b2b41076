"""`hone tensorboard`: show the curves of a job, from a folder here or from the job's claim while it trains."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from hone.local import requirements
from hone_api.layout import LOGS

from hone_cli.commands import options
from hone_cli.ui import child_process, completion

Target = Annotated[
    str,
    typer.Argument(
        metavar="JOB|DIR", help="FineTuneJob, or a folder of `hone run`.", autocompletion=completion.complete_jobs
    ),
]


def command(
    target: Target,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Start TensorBoard on the curves of a FineTuneJob, which are kept up to date, until Ctrl-C."""
    requirements.require_modules("trainer", "tensorboard")
    folder = Path(target)
    if folder.is_dir():
        logs = folder / LOGS
        raise typer.Exit(run_tensorboard(logs if logs.is_dir() else folder, lambda: None))
    from hone.artifacts import transfer
    from hone.kube import cluster
    from hone.objects.names import JOB, parse_name

    from hone_cli.tensorboard.event_copy import EventCopy

    name = parse_name(target, JOB, "tensorboard")
    connection = cluster.connect(context, namespace)
    job = transfer.find_job(connection, name)
    with (
        TemporaryDirectory(prefix="hone-tensorboard-") as scratch,
        transfer.open_session(connection, job) as session,
    ):
        copy = EventCopy(session, Path(scratch), _stop_this_process)
        copy.start()
        try:
            code = run_tensorboard(Path(scratch), copy.stop)
        finally:
            copy.stop()
    if copy.failure:
        raise copy.failure
    raise typer.Exit(code)


def _stop_this_process() -> None:
    """End TensorBoard and the command, from another thread, as `kill` does."""
    os.kill(os.getpid(), signal.SIGTERM)


def run_tensorboard(folder: Path, on_stop: Callable[[], None]) -> int:
    """Run TensorBoard until it ends, and return its exit code; 0 after Ctrl-C. `on_stop` is called at Ctrl-C."""
    is_stopped = threading.Event()

    def stop() -> None:
        is_stopped.set()
        on_stop()

    code = child_process.run_module("tensorboard.main", ["--logdir", str(folder.resolve())], on_stop=stop)
    return 0 if is_stopped.is_set() else code
