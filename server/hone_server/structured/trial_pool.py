"""Try grammars in processes that may crash: the engine's side of `grammar_trial`.

In: a grammar, as a list of its parts. Out: the grammar to compile here, or a refusal with its reason. Verdicts are
cached, so that a repeated schema costs nothing. A trial that no request waits for any more is not started, and the
newest is started first, so that a burst of slow schemas does not delay later requests. `guidance` compiles the grammars
that pass.
"""

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from hone_server.protocol.errors import RETRY_SECONDS, ApiError
from hone_server.structured.grammar_trial import CPU_SECONDS, EXIT_LINE_PREFIX, MEMORY_BYTES, WALL_SECONDS
from hone_server.structured.lifo_semaphore import LifoSemaphore

MAX_TRIALS = 3
MAX_CACHED_VERDICTS = 256
TOO_LARGE = (
    f"takes more than {CPU_SECONDS} s or {MEMORY_BYTES >> 20} MiB to compile; simplify it, for example by smaller "
    "bounds, shorter patterns and a smaller multipleOf"
)
_LIMIT_STATUSES = (-signal.SIGXCPU, -signal.SIGABRT, 1)
# By no limit of the trial, and by no fault of the schema: the kernel's when memory is short, or an administrator's.
_OUTSIDE_STATUSES = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)

_HAS_MEMFD = hasattr(os, "memfd_create")  # on Linux

_pool = ThreadPoolExecutor(MAX_TRIALS, thread_name_prefix="trial")
_semaphore = LifoSemaphore(MAX_TRIALS)


@dataclass(frozen=True)
class Verdict:
    """The result of a trial.

    error: names the function, or other part, with the schema. grammar: None is the one given.
    """

    grammar: str | None = None
    error: str | None = None
    is_busy: bool = False


class GrammarTrials:
    """Tries the grammars for one vocabulary, in a helper process that the first trial starts."""

    def __init__(self, vocabulary: dict[str, Any]) -> None:
        self._vocabulary = vocabulary
        self._verdicts: OrderedDict[str, Verdict] = OrderedDict()
        self._running: dict[str, asyncio.Task[Verdict]] = {}
        self._waiters: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def close(self) -> None:
        """End the helper."""
        with self._lock:
            self._stop_helper()

    async def get_verdict(self, grammars: Sequence[dict[str, Any]], owners: Sequence[str | None]) -> Verdict:
        """Return the verdict on a grammar, from the cache or from a trial."""
        request = json.dumps({"grammars": grammars, "owners": owners})
        key = hashlib.sha256(request.encode()).hexdigest()
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            return self._verdicts[key]
        if (running := self._running.get(key)) is None:
            running = self._running[key] = asyncio.create_task(
                _semaphore.run_in_turn(partial(self._run_in_thread, request))
            )
            running.add_done_callback(lambda done: self._cache_verdict(key, done))
        self._waiters[key] += 1
        try:
            return await asyncio.shield(running)
        finally:
            self._waiters[key] -= 1
            if not self._waiters[key]:
                del self._waiters[key]
                if _semaphore.cancel_waiting(running):
                    self._forget_running(key, running)

    async def _run_in_thread(self, request: str) -> Verdict:
        return await asyncio.get_running_loop().run_in_executor(_pool, self._run_trial, request)

    def _cache_verdict(self, key: str, done: "asyncio.Task[Verdict]") -> None:
        self._forget_running(key, done)
        if done.cancelled() or done.exception() or done.result().is_busy:
            return
        self._verdicts[key] = done.result()
        while len(self._verdicts) > MAX_CACHED_VERDICTS:
            self._verdicts.popitem(last=False)

    def _forget_running(self, key: str, running: "asyncio.Task[Verdict]") -> None:
        if self._running.get(key) is running:
            del self._running[key]

    def _run_trial(self, request: str) -> Verdict:
        lines, status = self._ask_helper(request)
        if status == 0:
            found = json.loads(lines[-1])
            if not found.get("error"):
                return Verdict(grammar=found["grammar"])
            place = f" at {found['place']}" if found.get("place") else ""
            whose = f"{found['owner']} has " if found.get("owner") else ""
            return Verdict(error=f"{whose}a schema that can't be enforced{place}: {found['error']}")
        if status is None or status == -signal.SIGALRM:
            return Verdict(error="the machine is too busy to compile its schema", is_busy=True)
        if status in _OUTSIDE_STATUSES:
            text = f"the process that compiles its schema was ended from outside ({_name_status(status)})"
            return Verdict(error=text, is_busy=True)
        owner = self._find_owner(json.loads(request))
        if status in _LIMIT_STATUSES:
            text = f"a schema that {TOO_LARGE}"
        else:
            text = f"a schema on which the compiler fails ({_name_status(status)}); simplify it"
        return Verdict(error=f"{owner} has {text}" if owner else text)

    def _find_owner(self, request: dict[str, Any]) -> str | None:
        """Return which part of the request has the schema that crashes or exceeds the limits; None: unknown."""
        owners: list[str | None] = request["owners"]
        if len(named := [owner for owner in owners if owner]) <= 1:
            return named[0] if named else None
        numbers, _ = self._ask_helper(json.dumps({**request, "names_owner": True}))
        return owners[int(numbers[-1])] if numbers else None

    def _ask_helper(self, request: str) -> tuple[list[str], int | None]:
        """Return the lines of a fork of the helper, and its exit status; None: unknown, as the helper has ended."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.settimeout(WALL_SECONDS + CPU_SECONDS)
            try:
                with theirs, self._lock:
                    self._start_helper()
                    assert self._control is not None
                    socket.send_fds(self._control, [b"+"], [theirs.fileno()])
                ours.sendall(request.encode())
                ours.shutdown(socket.SHUT_WR)
                with ours.makefile("rb") as stream:
                    lines = stream.read().decode().splitlines()
                if not lines or not lines[-1].startswith(EXIT_LINE_PREFIX):
                    return lines, None
                return lines[:-1], int(lines[-1].removeprefix(EXIT_LINE_PREFIX))
            except OSError:
                with self._lock:
                    self._stop_helper()  # the next trial starts another one
                return [], None

    def _start_helper(self) -> None:
        """Start the helper, unless it runs."""
        if self._helper is not None and self._helper.poll() is None:
            return
        self._stop_helper()
        self._control, theirs = socket.socketpair()
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
        with theirs, _make_file(json.dumps(self._vocabulary).encode()) as vocabulary:
            self._helper = subprocess.Popen(
                [sys.executable, "-P", "-m", "hone_server.structured.grammar_trial", str(theirs.fileno())],
                stdin=vocabulary,
                pass_fds=[theirs.fileno()],
                env=kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def _stop_helper(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._helper is not None:
            self._helper.kill()
            self._helper.wait()
        self._helper = self._control = None


def _make_file(content: bytes) -> IO[bytes]:
    """Return a file to be read from its beginning. Writing it waits for nobody, as a pipe to the helper could."""
    if _HAS_MEMFD:
        file: IO[bytes] = os.fdopen(os.memfd_create("vocabulary"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 the caller closes it
    file.write(content)
    file.seek(0)
    return file


def raise_for_verdict(verdict: Verdict, param: str) -> None:
    """Raise ApiError for a grammar that did not pass."""
    if verdict.is_busy:
        headers = {"Retry-After": str(RETRY_SECONDS)}
        raise ApiError(503, f"{param}: {verdict.error}; try again", param=param, headers=headers)
    if verdict.error:
        linked = ":" if verdict.error.startswith("the ") else " has"
        raise ApiError(400, f"{param}{linked} {verdict.error}", param=param)


def _name_status(status: int) -> str:
    return signal.Signals(-status).name if -status in set(signal.Signals) else f"exit status {status}"
