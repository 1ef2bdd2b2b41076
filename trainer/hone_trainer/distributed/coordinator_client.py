"""Client of the coordinator: connects the launcher of one node to those of the other nodes.

The launcher joins, reports that a process has ended, and reports its result. It receives the port of rank 0, the reason
why the run is over for all nodes, and which node caused a failure. The messages are listed in `coordinator`.
"""

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any

from hone_trainer.distributed.coordinator import HEARTBEAT_SECONDS, HEARTBEAT_TIMEOUT_SECONDS, SHUTDOWN_GRACE_SECONDS
from hone_trainer.distributed.ranks import Rendezvous
from hone_trainer.distributed.results import WorkerResult, is_unclassified, make_node_result

# Seconds after which the same waiting message is printed again.
REMINDER_SECONDS = 60.0


class CoordinatorClient:
    """The connection of one node's launcher. `end_reason` is the reason why the run is over for all nodes, empty while
    it is not.
    """

    def __init__(self, here: Rendezvous, note: Callable[[str], None]) -> None:
        """Connect to the coordinator in a thread, for as long as it takes. `note` prints a line."""
        self.end_reason = ""
        self._rendezvous = here
        self._print = note
        self._last_printed = ("", 0.0)
        self._channel: socket.socket | None = None
        self._master_port = 0
        self._root_cause_node: int | None = None
        self._begun, self._settled = Event(), Event()
        Thread(target=self._connect_until_settled, name="coordinator client", daemon=True).start()
        Thread(target=self._send_heartbeats, name="beat", daemon=True).start()

    def join_rendezvous(self, is_done: Callable[[], bool]) -> int | None:
        """Wait for all nodes and return the port of rank 0; return None when `is_done`, since nothing is left to do."""
        while not self._begun.wait(HEARTBEAT_SECONDS):
            if is_done():
                return None
        return self._master_port

    def report_exit(self) -> None:
        """Notify the other nodes that a process of this node has ended."""
        self._send(ending=True)

    def resolve_result(self, result: WorkerResult) -> WorkerResult:
        """Report this node's result and return it, corrected: the cause of a failure without a name may be on another
        node.
        """
        self._send(word=result.model_dump(mode="json", include={"outcome", "reason", "killed"}))
        if is_unclassified(result):
            self._settled.wait(SHUTDOWN_GRACE_SECONDS)
        return make_node_result(result, self._root_cause_node == self._rendezvous.node_rank, self.end_reason)

    def _connect_until_settled(self) -> None:
        address = f"{self._rendezvous.address}:{self._rendezvous.port}"
        while not self._begun.is_set():
            try:
                with socket.create_connection(
                    (self._rendezvous.address, self._rendezvous.port), HEARTBEAT_TIMEOUT_SECONDS
                ) as channel:
                    self._receive_messages(channel)
            except (OSError, ValueError) as error:
                found = str(error)
            else:
                found = "it is of an earlier start, or of another number of nodes"
            if not self._begun.is_set():
                self._print_reminder(f"node {self._rendezvous.node_rank} waits for node 0 at {address}: {found}")
                time.sleep(HEARTBEAT_SECONDS)
        if not self._settled.is_set():
            self.end_reason = self.end_reason or "Node 0 was lost"
            self._settled.set()

    def _receive_messages(self, channel: socket.socket) -> None:
        self._channel = channel
        self._send(node=self._rendezvous.node_rank, nodes=self._rendezvous.nodes)
        with channel.makefile("rb") as lines:
            for line in lines:
                self._handle_message(json.loads(line))

    def _handle_message(self, message: dict[str, Any]) -> None:
        if message.get("waiting"):
            missing = ", ".join(str(node) for node in message["waiting"])
            self._print_reminder(
                f"node {self._rendezvous.node_rank} waits for node {missing} of {self._rendezvous.nodes} "
                "(the first is 0)"
            )
        if "begin" in message:
            self._master_port = message["begin"]
            self._begun.set()
        self.end_reason = self.end_reason or message.get("over", "")
        if "cause" in message:
            self._root_cause_node = message["cause"]
            self._settled.set()

    def _send_heartbeats(self) -> None:
        while not self._settled.is_set():
            self._send()
            time.sleep(HEARTBEAT_SECONDS)

    def _send(self, **message: Any) -> None:
        if self._channel:
            with suppress(OSError):  # the listening thread detects the loss, too
                self._channel.sendall(json.dumps(message).encode() + b"\n")

    def _print_reminder(self, text: str) -> None:
        before, at = self._last_printed
        if text != before or time.monotonic() - at >= REMINDER_SECONDS:
            self._print(text)
            self._last_printed = (text, time.monotonic())
