"""A FineTuneJob as the caller of the client has it."""

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hone_api.io.terminal import make_printable

from hone.errors import ClientError, JobFailedError
from hone.notebook.live import LiveView
from hone.notebook.panel import render_job, render_transfer
from hone.objects import job_progress, views
from hone.objects.names import JOB
from hone.objects.views import Object, require_artifact
from hone.progress import Curve, Progress, read_progress
from hone.reports import Report

if TYPE_CHECKING:
    from hone.artifacts.target import Sizes
    from hone.backends.backend import Backend

# The curves that a notebook shows, by their names in the log of the trainer.
CURVES = {"loss": "loss", "eval_loss": "evaluation loss"}


class FineTuneJob:
    """A FineTuneJob in a cluster or on this machine. Every call reads it again, and raises HoneError when it fails."""

    def __init__(self, backend: "Backend", name: str) -> None:
        self.name = name
        self._backend = backend
        self._losses: Curve = []

    def read(self) -> Object:
        """Return the object as Kubernetes has it: metadata, spec and status."""
        return self._backend.read(JOB, self.name)

    @property
    def stage(self) -> str:
        """Return Pending, Preparing, Training, Saving, Succeeded, Failed or Suspended."""
        return views.describe_phase(self.read())

    @property
    def metrics(self) -> dict[str, float]:
        """Return the final metrics, such as trainLoss; empty before the end."""
        return dict((self.read().get("status") or {}).get("metrics") or {})

    @property
    def artifact(self) -> dict[str, Any]:
        """Return kind, digest, base model and place of the artifact. Raises ClientError when there is none yet."""
        return dict(require_artifact(self.read()))

    def progress(self) -> Iterator[Progress]:
        """Yield the progress at every change, until the job has ended. A failure is no error here: see `wait`."""
        for body in self._backend.follow_job(self.name):
            yield self._remember(body)

    def wait(self) -> None:
        """Wait until the job has succeeded. A notebook and a terminal show its progress.

        Raises JobFailedError with the reason, and ClientError when the job was stopped.
        """
        view = LiveView()
        body: Object = {}
        for body in self._backend.follow_job(self.name):
            view.show(self._render(body), str(self._remember(body)))
        ended = job_progress.has_succeeded(body)
        if ended is None:
            raise ClientError(f"FineTuneJob {self.name} was stopped before its end", "Continue it with job.resume().")
        if not ended:
            found = views.find_condition(body, "Failed") or {}
            message = str(found.get("message") or job_progress.explain_failure(body))
            failure = str(found.get("reason") or "Failed")
            raise JobFailedError(failure, f"FineTuneJob {self.name} failed: {failure}: {message}", "See job.logs().")

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the trainer's log; `follow`: until the trainer has ended."""
        for line in self._backend.read_log(JOB, self.name, follow=follow):
            yield make_printable(line)

    def report(self) -> Report:
        """Return the report, which a notebook shows."""
        return Report(self.name, self._backend.read_report(self.name))

    def pull(self, folder: str | PathLike[str] | None = None) -> Path:
        """Download the artifact into a folder (default: the job's name), prove every file, and return the folder.

        Call it again after an interruption: it continues.
        """
        root = Path(folder or self.name)
        self._backend.pull(self.name, root, _show_transfer(f"{self.name} → {root}"))
        return root

    def suspend(self) -> None:
        """Stop the job with a checkpoint."""
        self._backend.set_suspend(self.name, suspend=True)

    def resume(self) -> None:
        """Continue the job from its newest checkpoint."""
        self._backend.set_suspend(self.name, suspend=False)

    def delete(self, *, with_claim: bool = False) -> None:
        """Delete the job. What it saved stays; `with_claim`: it is deleted, too."""
        self._backend.delete(JOB, self.name, with_claim=with_claim)

    def __repr__(self) -> str:
        return f"FineTuneJob {self.name} in {self._backend.place}: {read_progress(self.read())}"

    def _repr_html_(self) -> str:
        return self._render(self.read())

    def _remember(self, body: Object) -> Progress:
        found = read_progress(body)
        if found.step is not None and found.loss is not None and (found.step, found.loss) not in self._losses[-1:]:
            self._losses.append((found.step, found.loss))
        return found

    def _render(self, body: Object) -> str:
        found = read_progress(body)
        logged = self._backend.read_curves(self.name) or {"loss": self._losses}
        curves = {title: logged[name] for name, title in CURVES.items() if name in logged}
        lines = [found.figures, found.waiting or ""]
        if job_progress.has_succeeded(body) is False:
            lines.append(job_progress.explain_failure(body))
        elif artifact := (body.get("status") or {}).get("artifact"):
            lines.append(f"{artifact['kind']} {artifact['digest']}")
        return render_job(f"FineTuneJob {self.name}", found.stage, found.percent, lines, curves)


def _show_transfer(title: str) -> "Callable[[Sizes], Callable[[str, int], None]]":
    view = LiveView()

    def begin(sizes: "Sizes") -> Callable[[str, int], None]:
        received = sizes.here

        def advance(name: str, count: int) -> None:
            nonlocal received
            received += count
            percent = 100 * received // sizes.total if sizes.total else 100
            view.show(render_transfer(title, received, sizes.total), f"{title}: {percent // 10 * 10} %")

        return advance

    return begin
