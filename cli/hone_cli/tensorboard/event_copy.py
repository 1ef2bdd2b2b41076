"""Copy the event files of a job while they grow.

The reader pod of `hone pull` runs FOLLOW, which sends what is new over one long connection, since the pod ends when no
command runs in it. A connection that was cut is opened again, from what is here, as long as the pod exists.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hone.artifacts import pod_script, reader_pod
from hone.artifacts.transfer import Session
from hone.errors import ClientError
from hone.kube import exec_socket, rest, temporary_pod
from hone.kube.cluster import Object, explain_error
from hone_api.layout import LOGS
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError
from websocket import ABNF, WebSocketException

from hone_cli.ui import output

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


class EventCopy:
    """Copies the event files of a job into a folder, and keeps the copy up to date, in a thread.

    When that has become impossible, `failure` is why, and `on_failure` is called.
    """

    def __init__(self, session: Session, folder: Path, on_failure: Callable[[], None]) -> None:
        self.failure: ClientError | None = None
        self._session = session
        self._folder = folder
        self._on_failure = on_failure
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
        while not self._is_stopped.is_set():
            refusal = None
            try:
                self._follow()
                why = "the stream ended"
            except (ApiException, WebSocketException, OSError) as error:
                why = str(error) or type(error).__name__
                refusal = error if isinstance(error, ApiException) else None
            except ClientError as error:
                self._fail(error)
                return
            if self._is_stopped.is_set():
                return
            if end := self._find_end(refusal):
                self._fail(end)
                return
            output.print_hint(f"The curves are not up to date ({' '.join(why.split())}); trying again.")
            self._is_stopped.wait(RETRY_SECONDS)

    def _fail(self, error: ClientError) -> None:
        self.failure = error
        self._on_failure()

    def _find_end(self, refusal: ApiException | None) -> ClientError | None:
        """Return why another try can't succeed; None where it may."""
        name, namespace = self._session.pod, self._session.cluster.namespace
        try:
            pod = rest.call_api(self._session.cluster, f"/api/v1/namespaces/{namespace}/pods/{name}")
        except ApiException as error:
            if error.status == 404:
                return _explain_end(name, "was deleted")
            return explain_error(f"pod {name}", error) if temporary_pod.is_final(error) else None
        except HTTPError:
            return None
        if how := _describe_end(pod):
            return _explain_end(name, how)
        return explain_error(f"exec in pod {name}", refusal) if refusal and refusal.status in (401, 403) else None

    def _follow(self) -> None:
        """Copy until the stream is cut. Raises ApiException, WebSocketException, OSError, and ClientError."""
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


def _describe_end(pod: Object) -> str | None:
    """Return how a pod has ended; None while it runs."""
    status = pod.get("status") or {}
    if status.get("phase") not in ("Succeeded", "Failed"):
        return "is being deleted" if pod["metadata"].get("deletionTimestamp") else None
    reason = ": ".join(str(status[key]) for key in ("reason", "message") if status.get(key))
    return f"has ended with phase {status['phase']}" + (f" ({reason})" if reason else "")


def _explain_end(pod: str, how: str) -> ClientError:
    return ClientError(
        f"pod {pod}, which reads the curves from the claim, {how}",
        "Run the same command again: it starts another pod.",
    )


class EventStream:
    """Writes what FOLLOW sends, which arrives in pieces of any size, to the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending = b""
        self._path: Path | None = None
        self._left = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises ClientError for what is no path of an event file."""
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
            raise ClientError(
                f"the pod sent {line[:80]!r}, which is no event file of TensorBoard", "Check the job's image."
            ) from None
        self._path, self._left = self._folder / path, size
        self._path.parent.mkdir(parents=True, exist_ok=True)


def measure_files(folder: Path) -> dict[str, int]:
    """Return the size of each copied file by its path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
