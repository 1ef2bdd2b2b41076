"""`python -m hone_server.structured.grammar_trial FD`: try to compile grammars, each in a process that may crash.

A client's grammar can crash the compiler, or make it run for hours. So `trial_pool` starts this process, and sends it
one end of a socket for each grammar. A fork of it reads the grammar, compiles it within limits of time and memory, and
writes a verdict, to which the parent adds the exit status of the fork. A grammar that passes is compiled again in the
engine. If the compiler refuses a grammar, the fork also finds the cause: functions that are not strict lose the
keywords that can't be enforced, and for others the verdict names the function and the keyword.
"""

import array
import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Collection
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from hone_server.structured.schema_places import Path, format_path, list_removable, remove_at
from hone_server.structured.vocabulary import PARSER_LIMITS, make_tokenizer

CPU_SECONDS = 3
# A schema of some 300 properties takes 0.02 s. A trial that exceeds this one ends by SIGPROF.
QUICK_CPU_SECONDS = 0.1
WALL_SECONDS = 20
MEMORY_BYTES = 256 << 20
# The threads of the engine have twice as much (8 MiB), so that a grammar that passes here does not overflow theirs.
STACK_BYTES = 4 << 20
NICENESS = 5
MAX_REPAIRS = 64
EXIT_LINE_PREFIX = "ended "
"""Begins the last line to the engine, which the parent writes: how the fork ended."""


def try_grammar(tokenizer: LLTokenizer, request: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict: `grammar` (the one to use), or `error` and `owner`, which names the part with that schema."""
    grammars = request["grammars"]
    error = _find_refusal(tokenizer, grammars)
    if not error:
        return {"grammar": None}
    repaired = []
    for grammar, owner in zip(grammars, request["owners"], strict=True):
        schema = grammar.get("json_schema")
        alone = _find_refusal(tokenizer, [{"json_schema": schema}]) if schema is not None else ""
        if not alone:
            repaired.append(grammar)
            continue

        def passes(candidate: Any) -> bool:
            return not _find_refusal(tokenizer, [{"json_schema": candidate}])

        if not schema["x-guidance"].get("lenient"):
            place = find_refused_keyword(schema, passes)
            return {"error": alone, "owner": owner, "place": format_path(place) if place else None}
        repaired.append({**grammar, "json_schema": remove_refused_keywords(schema, passes)})
    error = _find_refusal(tokenizer, repaired)
    return {"error": error, "owner": None} if error else {"grammar": json.dumps({"grammars": repaired})}


def report_owners(tokenizer: LLTokenizer, request: dict[str, Any], report: Callable[[int], None]) -> None:
    """Compile each schema alone, after reporting its number. The last reported number is that of the failing one."""
    for number, grammar in enumerate(request["grammars"]):
        if (schema := grammar.get("json_schema")) is not None:
            report(number)
            _find_refusal(tokenizer, [{"json_schema": schema}])


def _find_refusal(tokenizer: LLTokenizer, grammars: list[dict[str, Any]]) -> str:
    """Return the compiler's reason to refuse the grammar; empty if it accepts it."""
    matcher = LLMatcher(tokenizer, json.dumps({"grammars": grammars}), log_level=0, limits=PARSER_LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return str(matcher.get_error()) or "no reason was given" if matcher.is_error() else ""


def find_refused_keyword(schema: Any, passes: Callable[[Any], bool], gone: Collection[Path] = ()) -> Path | None:
    """Return the place of a keyword whose removal, in addition to those in `gone`, helps; None if there is none.

    Tries prefixes of the list of removable keywords, by bisection.
    """
    places = [place for place in list_removable(schema) if place not in gone]
    if not passes(remove_at(schema, {*gone, *places})):
        return None
    low, high = 0, len(places)
    while high - low > 1:
        middle = (low + high) // 2
        if passes(remove_at(schema, {*gone, *places[:middle]})):
            high = middle
        else:
            low = middle
    return places[high - 1] if places else None


def remove_refused_keywords(schema: dict[str, Any], passes: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the schema without the keywords that the compiler refuses; without any keywords, if there are too many."""
    gone: set[Path] = set()
    while not passes(remove_at(schema, gone)):
        place = find_refused_keyword(schema, passes, gone) if len(gone) < MAX_REPAIRS else None
        if place is None:
            return {"type": "object", "x-guidance": schema["x-guidance"]}
        gone.add(place)
    repaired: dict[str, Any] = remove_at(schema, gone)
    return repaired


def _handle_connection(connection: socket.socket, tokenizer: LLTokenizer) -> None:
    """Read a request from the connection, and write its verdict. Runs in a fork."""
    with connection.makefile("rb") as stream:
        request = json.load(stream)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)  # the verdict has what the compiler writes when it fails
    _limit_resources(is_quick=request["is_quick"])
    if request.get("names_owner"):
        report_owners(tokenizer, request, lambda number: connection.sendall(f"{number}\n".encode()))
    else:
        connection.sendall(json.dumps(try_grammar(tokenizer, request)).encode() + b"\n")


def _limit_resources(*, is_quick: bool) -> None:
    """Limit the time and memory of this process; exceeding a limit ends it."""
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    if is_quick:
        signal.setitimer(signal.ITIMER_PROF, QUICK_CPU_SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES if hard < 0 else min(STACK_BYTES, hard), hard))
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as sizes:
            used = int(sizes.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    os.nice(NICENESS)


class ForkServer:
    """Forks a process for each connection that `trial_pool` sends over the control socket."""

    def __init__(self, control: socket.socket, tokenizer: LLTokenizer) -> None:
        self._control = control
        self._tokenizer = tokenizer
        self._children: dict[int, socket.socket] = {}

    def serve(self) -> None:
        """Fork and reap processes until the engine closes its end of the socket."""
        woken, waking = os.pipe()
        os.set_blocking(waking, False)
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self._control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                os.read(woken, 4096)
                self._reap_children()
            if self._control in ready and not self._accept_connection():
                return

    def _accept_connection(self) -> bool:
        size = array.array("i").itemsize
        data, ancillary, _, _ = self._control.recvmsg(1, socket.CMSG_LEN(size))
        if not data:
            return False
        for _, _, found in ancillary:
            descriptors = array.array("i")
            descriptors.frombytes(found[:size])
            self._fork_child(socket.socket(fileno=descriptors[0]))
        return True

    def _fork_child(self, connection: socket.socket) -> None:
        pid = os.fork()
        if pid:
            self._children[pid] = connection
            return
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            _handle_connection(connection, self._tokenizer)
            os._exit(0)
        finally:
            os._exit(1)

    def _reap_children(self) -> None:
        """Reap the processes that ended, and send the engine their exit statuses."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with self._children.pop(pid) as connection:
                try:
                    connection.sendall(f"{EXIT_LINE_PREFIX}{os.waitstatus_to_exitcode(status)}\n".encode())
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the engine no longer waits for it


def main() -> None:
    # The engine's end ends it. A terminal or a service manager signals the engine's whole group, whose drain needs it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    vocabulary = json.load(sys.stdin.buffer)
    tokenizer = make_tokenizer(vocabulary["tokenizer"], vocabulary["vocab_size"], vocabulary["eos_token_ids"])
    gc.collect()
    gc.freeze()
    ForkServer(socket.socket(fileno=int(sys.argv[1])), tokenizer).serve()


if __name__ == "__main__":
    main()
