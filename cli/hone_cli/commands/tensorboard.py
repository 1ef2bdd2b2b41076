"""`hone tensorboard`: show the curves of a job, from a folder here or from the job's claim while it trains."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from hone_api.layout import LOGS

from hone_cli.client import child_process, completion
from hone_cli.commands import options
from hone_cli.ui import output
from hone_cli.ui.output import Problem

if TYPE_CHECKING:
    from hone_cli.artifacts.transfer import Session

Target = Annotated[
    str,
    typer.Argument(
        metavar="JOB|DIR", help="FineTuneJob, or a folder of `hone run`.", autocompletion=completion.complete_jobs
    ),
]

RETRY_SECONDS = 5.0
# The pod sends a line at least every few seconds; without one for this long the stream counts as cut.
SILENCE_SECONDS = 60.0
EVENTS = ".tfevents."
# What the pod runs: it sends what is new in the event files, each piece after a line of JSON that describes it.
FOLLOW = """
import json, os, stat, sys, time
root, sent = sys.argv[1], json.loads(sys.argv[2])
out = sys.stdout.buffer
while True:
    for folder, _, names in os.walk(root):
        for name in names:
            if ".tfevents." not in name:
                continue
            path = os.path.relpath(os.path.join(folder, name), root)
            try:
                descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                continue
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    continue
                file.seek(sent.get(path, 0))
                while piece := file.read(65536):
                    sent[path] = sent.get(path, 0) + len(piece)
                    out.write(json.dumps({"path": path, "size": len(piece)}).encode() + b"\\n" + piece)
    out.write(b"{}\\n")
    out.flush()
    time.sleep(3)
"""


def command(
    target: Target,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Start TensorBoard on the curves of a FineTuneJob, which are kept up to date, until Ctrl-C."""
    child_process.require_modules("trainer", "tensorboard")
    folder = Path(target)
    if folder.is_dir():
        logs = folder / LOGS
        raise typer.Exit(run_tensorboard(logs if logs.is_dir() else folder, lambda: None))
    from hone_cli.artifacts import transfer
    from hone_cli.client import cluster
    from hone_cli.objects.names import JOB, parse_name

    name = parse_name(target, JOB, "tensorboard")
    connection = cluster.connect(context, namespace)
    job = transfer.find_job(connection, name)
    with (
        TemporaryDirectory(prefix="hone-tensorboard-") as scratch,
        transfer.open_session(connection, job) as session,
    ):
        copy = EventCopy(session, Path(scratch))
        copy.start()
        try:
            code = run_tensorboard(Path(scratch), copy.stop)
        finally:
            copy.stop()
    raise typer.Exit(code)


def run_tensorboard(folder: Path, on_stop: Callable[[], None]) -> int:
    """Run TensorBoard until it ends, and return its exit code; 0 after Ctrl-C. `on_stop` is called at Ctrl-C."""
    is_stopped = threading.Event()

    def stop() -> None:
        is_stopped.set()
        on_stop()

    code = child_process.run_module("tensorboard.main", ["--logdir", str(folder.resolve())], on_stop=stop)
    return 0 if is_stopped.is_set() else code


class EventCopy:
    """Copies the event files of a job into a folder, and keeps the copy up to date, in a thread."""

    def __init__(self, session: "Session", folder: Path) -> None:
        self._session = session
        self._folder = folder
        self._socket: Any = None
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start to copy."""
        self._thread.start()

    def stop(self) -> None:
        """Stop copying. The thread ends when its socket is closed."""
        self._is_stopped.set()
        if self._socket:
            self._socket.shutdown()

    def _run(self) -> None:
        from kubernetes.client.exceptions import ApiException
        from websocket import WebSocketException

        while not self._is_stopped.is_set():
            try:
                self._follow()
                why = "the stream ended"
            except (ApiException, WebSocketException, OSError) as error:
                why = str(error) or type(error).__name__
            except Problem as error:
                output.print_failure(error)
                return
            if not self._is_stopped.wait(RETRY_SECONDS):
                output.print_hint(f"The curves are not up to date ({' '.join(why.split())}); trying again.")

    def _follow(self) -> None:
        """Copy until the stream is cut. Raises ApiException, WebSocketException, OSError, and Problem."""
        from websocket import ABNF

        from hone_cli.artifacts import pod_script, reader_pod
        from hone_cli.client import exec_socket

        command = ["python3", "-I", "-c", FOLLOW, f"{pod_script.ROOT}/{LOGS}", json.dumps(measure_files(self._folder))]
        self._socket = exec_socket.open_exec(self._session.cluster, self._session.pod, reader_pod.CONTAINER, command)
        try:
            self._socket.settimeout(SILENCE_SECONDS)
            stream = EventStream(self._folder)
            while not self._is_stopped.is_set():
                code, frame = self._socket.recv_data_frame(True)
                if code == ABNF.OPCODE_CLOSE:
                    return
                if frame.data and frame.data[0] == reader_pod.STDOUT:
                    stream.feed(frame.data[1:])
        finally:
            self._socket.shutdown()


class EventStream:
    """Writes what FOLLOW sends, which arrives in pieces of any size, to the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending = b""
        self._path: Path | None = None
        self._left = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises Problem for what is no path of an event file."""
        self._pending += data
        while self._pending:
            if self._path:
                piece, self._pending = self._pending[: self._left], self._pending[self._left :]
                with self._path.open("ab") as file:
                    file.write(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._path = None
            else:
                line, newline, rest = self._pending.partition(b"\n")
                if not newline:
                    return
                self._pending = rest
                self._begin_piece(line)

    def _begin_piece(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            if not found:
                return
            path, size = found["path"], found["size"]
            is_plain = type(size) is int and size > 0 and EVENTS in path and path.isprintable()
            if not is_plain or path.startswith("/") or {"", ".", ".."} & set(path.split("/")):
                raise ValueError(path)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise Problem(
                f"the pod sent {line[:80]!r}, which is no event file of TensorBoard", "Check the job's image."
            ) from None
        self._path, self._left = self._folder / path, size
        self._path.parent.mkdir(parents=True, exist_ok=True)


def measure_files(folder: Path) -> dict[str, int]:
    """Return the size of each copied file by its path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
