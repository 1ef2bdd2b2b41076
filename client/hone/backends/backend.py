"""What the client needs of the place where jobs and services run."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from hone.artifacts.target import Sizes
from hone.objects.names import Kind
from hone.objects.views import Object
from hone.progress import Curve
from hone.specs.manifests import Draft

# Gets the sizes of an artifact, and returns a function that gets the name of a file and how many bytes of it came.
Begin = Callable[[Sizes], Callable[[str, int], None]]


class Backend(Protocol):
    """A cluster's namespace, or a folder of this machine. Every call raises HoneError when it fails."""

    @property
    def place(self) -> str:
        """Return the name of the place, for messages."""

    @property
    def is_local(self) -> bool:
        """Return whether files of this machine can be trained on and served."""

    def apply(self, draft: Draft) -> Object:
        """Make the object, or change the one of this name, and return it."""

    def read(self, kind: Kind, name: str) -> Object:
        """Return an object."""

    def list_objects(self, kind: Kind) -> list[Object]:
        """Return the objects of a kind, by name."""

    def follow_job(self, name: str) -> Iterator[Object]:
        """Yield the job now and at every change, until it can't change any more without a call."""

    def read_curves(self, name: str) -> dict[str, Curve]:
        """Return what the job has logged, by name; empty where only its progress can be read."""

    def read_log(self, kind: Kind, name: str, *, follow: bool) -> Iterator[str]:
        """Yield the lines of the log of a job or a service."""

    def set_suspend(self, name: str, *, suspend: bool) -> str:
        """Stop a job with a checkpoint, or continue it, and return a message."""

    def delete(self, kind: Kind, name: str, *, with_claim: bool) -> None:
        """Delete an object; `with_claim`: with all that it saved."""

    def read_report(self, name: str) -> bytes:
        """Return the HTML of a job's report."""

    def pull(self, name: str, folder: Path, begin: Begin) -> None:
        """Fill a folder with the artifact of a job, and prove every file."""

    def open_engine(self, name: str) -> AbstractContextManager[str]:
        """Return a context in which the service that is available answers at the base URL, which it yields."""
