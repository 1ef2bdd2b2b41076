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

from hone_trainer.distributed.coordinator import BEAT, PATIENCE, SILENCE
from hone_trainer.distributed.ranks import Rendezvous
from hone_trainer.distributed.results import Word, is_unnamed, settled

# Seconds after which the same waiting message is printed again.
REMIND = 60.0


class Member:
    """The connection of one node's launcher. `over` is the reason why the run is over for all nodes, empty while it is
    not.
    """

    def __init__(self, here: Rendezvous, note: Callable[[str], None]) -> None:
        """Connect to the coordinator in a thread, for as long as it takes. `note` prints a line."""
        self.over = ""
        self._here = here
        self._note = note
        self._noted = ("", 0.0)
        self._channel: socket.socket | None = None
        self._port = 0
        self._cause: int | None = None
        self._begun, self._settled = Event(), Event()
        Thread(target=self._listen, name="member", daemon=True).start()
        Thread(target=self._beat, name="beat", daemon=True).start()

    def join(self, is_done: Callable[[], bool]) -> int | None:
        """Wait for all nodes and return the port of rank 0; return None when `is_done`, since nothing is left to do."""
        while not self._begun.wait(BEAT):
            if is_done():
                return None
        return self._port

    def ending(self) -> None:
        """Notify the other nodes that a process of this node has ended."""
        self._say(ending=True)

    def settle(self, word: Word) -> Word:
        """Report this node's result and return it, corrected: the cause of a failure without a name may be on another
        node.
        """
        self._say(word=word.model_dump(mode="json", include={"outcome", "reason", "killed"}))
        if is_unnamed(word):
            self._settled.wait(PATIENCE)
        return settled(word, self._cause == self._here.node, self.over)

    def _listen(self) -> None:
        gate = f"{self._here.address}:{self._here.port}"
        while not self._begun.is_set():
            try:
                with socket.create_connection((self._here.address, self._here.port), SILENCE) as channel:
                    self._talk(channel)
            except (OSError, ValueError) as error:
                found = str(error)
            else:
                found = "it is of an earlier start, or of another number of nodes"
            if not self._begun.is_set():
                self._remind(f"node {self._here.node} waits for node 0 at {gate}: {found}")
                time.sleep(BEAT)
        if not self._settled.is_set():
            self.over = self.over or "Node 0 was lost"
            self._settled.set()

    def _talk(self, channel: socket.socket) -> None:
        self._channel = channel
        self._say(node=self._here.node, nodes=self._here.nodes)
        with channel.makefile("rb") as lines:
            for line in lines:
                self._take(json.loads(line))

    def _take(self, said: dict[str, Any]) -> None:
        if said.get("waiting"):
            missing = ", ".join(str(node) for node in said["waiting"])
            self._remind(f"node {self._here.node} waits for node {missing} of {self._here.nodes} (the first is 0)")
        if "begin" in said:
            self._port = said["begin"]
            self._begun.set()
        self.over = self.over or said.get("over", "")
        if "cause" in said:
            self._cause = said["cause"]
            self._settled.set()

    def _beat(self) -> None:
        while not self._settled.is_set():
            self._say()
            time.sleep(BEAT)

    def _say(self, **message: Any) -> None:
        if self._channel:
            with suppress(OSError):  # the listening thread detects the loss, too
                self._channel.sendall(json.dumps(message).encode() + b"\n")

    def _remind(self, text: str) -> None:
        before, at = self._noted
        if text != before or time.monotonic() - at >= REMIND:
            self._note(text)
            self._noted = (text, time.monotonic())
