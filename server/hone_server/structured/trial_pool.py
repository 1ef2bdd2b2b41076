"""Try grammars in processes that may crash: the engine's side of `grammar_trial`.

In: a grammar, as a list of its parts. Out: the grammar to compile here, or a refusal with its reason. Verdicts are
cached, so that a repeated schema costs nothing. A grammar has a short trial in the quick lane first. If that is not
enough, it has a longer one in the slow lane, so that no quick schema waits for a slow one. In each lane clients take
turns (fair_turns.py), and a trial that no request waits for any more is not started. `guidance` compiles the grammars
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import IO, Any, TypeVar

from hone_server.protocol.errors import RETRY_SECONDS, ApiError
from hone_server.structured.fair_turns import FairTurns
from hone_server.structured.grammar_trial import (
    CPU_SECONDS,
    EXIT_LINE_PREFIX,
    MEMORY_BYTES,
    QUICK_CPU_SECONDS,
    WALL_SECONDS,
)

Value = TypeVar("Value")

MAX_QUICK_TRIALS = 2
MAX_SLOW_TRIALS = 1
# More would not be tried within the time that a request waits (guidance.COMPILE_SECONDS).
MAX_WAITING_SLOW_TRIALS = 5
MAX_CACHED_VERDICTS = 256
MAX_KNOWN_SLOW = 4096
TOO_LARGE = (
    f"takes more than {CPU_SECONDS} s or {MEMORY_BYTES >> 20} MiB to compile; simplify it, for example by smaller "
    "bounds, shorter patterns and a smaller multipleOf"
)
TOO_MANY_SLOW = (
    f"its schema takes more than {QUICK_CPU_SECONDS} s to compile, and {MAX_WAITING_SLOW_TRIALS} such schemas of this "
    "client wait already"
)
_LIMIT_STATUSES = (-signal.SIGXCPU, -signal.SIGABRT, 1)
# By no limit of the trial, and by no fault of the schema: the kernel's when memory is short, or an administrator's.
_OUTSIDE_STATUSES = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)

_QUICK_LIMIT_STATUS = -signal.SIGPROF

_HAS_MEMFD = hasattr(os, "memfd_create")  # on Linux


@dataclass(frozen=True)
class Verdict:
    """The result of a trial.

    error: names the function, or other part, with the schema. grammar: None is the one given. is_slow: it takes longer
    than a trial in the quick lane.
    """

    grammar: str | None = None
    error: str | None = None
    is_busy: bool = False
    is_slow: bool = False


@dataclass(eq=False)
class Trial:
    """A grammar that is tried or waits for its turn, and how many requests of each client wait for its verdict."""

    key: str
    request: dict[str, Any]
    waiters: Counter[str] = field(default_factory=Counter)


class TrialLane:
    """Runs trials in threads of its own, so that only the trials in it wait for them."""

    def __init__(self, max_running: int, *, is_quick: bool) -> None:
        self.is_quick = is_quick
        self.turns = FairTurns[Trial](max_running)
        self._pool = ThreadPoolExecutor(max_running, thread_name_prefix="trial")

    async def run(self, trial: Trial, try_request: Callable[[dict[str, Any]], Verdict]) -> Verdict:
        """Return the verdict of the trial when its turn has come."""
        request = {**trial.request, "is_quick": self.is_quick}

        async def run_in_thread() -> Verdict:
            return await asyncio.get_running_loop().run_in_executor(self._pool, try_request, request)

        return await self.turns.run_in_turn(trial, trial.waiters.keys(), run_in_thread)


_quick_lane = TrialLane(MAX_QUICK_TRIALS, is_quick=True)
_slow_lane = TrialLane(MAX_SLOW_TRIALS, is_quick=False)


class GrammarTrials:
    """Tries the grammars for one vocabulary, in a helper process that the first trial starts."""

    def __init__(self, vocabulary: dict[str, Any]) -> None:
        self._vocabulary = vocabulary
        self._verdicts: OrderedDict[str, Verdict] = OrderedDict()
        self._trials: dict[str, Trial] = {}
        self._tasks: dict[Trial, asyncio.Task[Verdict]] = {}
        self._known_slow: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def close(self) -> None:
        """End the helper."""
        with self._lock:
            self._stop_helper()

    async def get_verdict(
        self, grammars: Sequence[dict[str, Any]], owners: Sequence[str | None], client: str
    ) -> Verdict:
        """Return the verdict on a grammar, from the cache or from a trial, whose turn is one of the client's."""
        request = {"grammars": grammars, "owners": owners}
        key = hashlib.sha256(json.dumps(request).encode()).hexdigest()
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            return self._verdicts[key]
        trial = self._trials.get(key) or self._begin_trial(Trial(key, request))
        trial.waiters[client] += 1
        for lane in (_quick_lane, _slow_lane):
            lane.turns.join(trial, client)
        try:
            return await asyncio.shield(self._tasks[trial])
        finally:
            self._leave_trial(trial, client)

    def _begin_trial(self, trial: Trial) -> Trial:
        self._trials[trial.key] = trial
        task = self._tasks[trial] = asyncio.create_task(self._try_in_lanes(trial))
        task.add_done_callback(lambda done: self._end_trial(trial, done))
        return trial

    def _leave_trial(self, trial: Trial, client: str) -> None:
        trial.waiters[client] -= 1
        if trial.waiters[client]:
            return
        del trial.waiters[client]
        if _quick_lane.turns.leave(trial, client) or _slow_lane.turns.leave(trial, client):
            self._forget_trial(trial)

    def _end_trial(self, trial: Trial, done: "asyncio.Task[Verdict]") -> None:
        self._forget_trial(trial)
        del self._tasks[trial]
        if done.cancelled() or done.exception() or done.result().is_busy:
            return
        _cache(self._verdicts, trial.key, done.result(), MAX_CACHED_VERDICTS)

    def _forget_trial(self, trial: Trial) -> None:
        if self._trials.get(trial.key) is trial:
            del self._trials[trial.key]

    async def _try_in_lanes(self, trial: Trial) -> Verdict:
        """Return the verdict of the quick lane, or else of the slow one. Later trials of a slow grammar begin there."""
        if trial.key not in self._known_slow:
            self._cancel_unless_awaited(trial)
            verdict = await _quick_lane.run(trial, self._try_request)
            if not verdict.is_slow:
                return verdict
        _cache(self._known_slow, trial.key, None, MAX_KNOWN_SLOW)
        self._cancel_unless_awaited(trial)
        if all(_slow_lane.turns.count_waiting(client) >= MAX_WAITING_SLOW_TRIALS for client in trial.waiters):
            return Verdict(error=TOO_MANY_SLOW, is_busy=True)
        return replace(await _slow_lane.run(trial, self._try_request), is_slow=True)

    def _cancel_unless_awaited(self, trial: Trial) -> None:
        """Raise CancelledError if no request waits for the verdict any more."""
        if not trial.waiters:
            self._forget_trial(trial)
            raise asyncio.CancelledError

    def _try_request(self, request: dict[str, Any]) -> Verdict:
        """Return the verdict; `is_slow`, and nothing else, if a quick trial has exceeded its time."""
        lines, status = self._ask_helper(json.dumps(request))
        if status == 0:
            found = json.loads(lines[-1])
            if not found.get("error"):
                return Verdict(grammar=found["grammar"])
            place = f" at {found['place']}" if found.get("place") else ""
            whose = f"{found['owner']} has " if found.get("owner") else ""
            return Verdict(error=f"{whose}a schema that can't be enforced{place}: {found['error']}")
        if status == _QUICK_LIMIT_STATUS:
            return Verdict(is_slow=True)
        if status is None or status == -signal.SIGALRM:
            return Verdict(error="the machine is too busy to compile its schema", is_busy=True)
        if status in _OUTSIDE_STATUSES:
            text = f"the process that compiles its schema was ended from outside ({_name_status(status)})"
            return Verdict(error=text, is_busy=True)
        owner = self._find_owner(request)
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
        numbers, status = self._ask_helper(json.dumps({**request, "names_owner": True}))
        return owners[int(numbers[-1])] if numbers and status != _QUICK_LIMIT_STATUS else None

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
        environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
        with theirs, _make_file(json.dumps(self._vocabulary).encode()) as vocabulary:
            self._helper = subprocess.Popen(
                [sys.executable, "-P", "-m", "hone_server.structured.grammar_trial", str(theirs.fileno())],
                stdin=vocabulary,
                pass_fds=[theirs.fileno()],
                env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def _stop_helper(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._helper is not None:
            self._helper.kill()
            self._helper.wait()
        self._helper = self._control = None


def _cache(cache: OrderedDict[str, Value], key: str, value: Value, max_entries: int) -> None:
    """Add an entry, and remove the oldest ones above the limit."""
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > max_entries:
        cache.popitem(last=False)


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
