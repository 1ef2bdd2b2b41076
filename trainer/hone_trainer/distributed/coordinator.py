"""Rendezvous of the launchers of all nodes: a TCP server in a thread of node 0's launcher.

Training begins when all launchers are connected. From then on, each is notified when a node is lost or a process ends.
When every node has ended, the server decides which node caused a failure that has no name. Each message is a line of
JSON; a side that sends nothing for SILENCE seconds counts as lost. `coordinator_client` is the other side.

  from a launcher:  {"node", "nodes"} first; {"ending"}: a process has ended; {"word"}: the node's result
  to the launchers: {"waiting"}: missing nodes; {"begin"}: port of rank 0; {"over"}: why it is over; {"cause"}: node
  both:             {} keeps the connection alive
"""

import asyncio
import json
from threading import Thread
from typing import Any

from hone_api.io.listening import open_listener
from hone_api.reasons import INTERNAL_ERROR, HoneError

from hone_trainer.distributed.ranks import Rendezvous, free_port
from hone_trainer.distributed.results import Word, cause

# Seconds between two messages, and seconds of silence after which the other side is lost.
BEAT, SILENCE = 2.0, 12.0
# Seconds that the other nodes have to report their results after this node has ended.
PATIENCE = 20.0
# Connections that have not sent a first message yet, and bytes in a line: any process in the network may connect.
MOST_STRANGERS, LONGEST_LINE = 64, 16 << 10


class Gate:
    """The rendezvous server, as a context manager: it accepts launchers inside the context."""

    def __init__(self, here: Rendezvous) -> None:
        """Listen on the port. Raises HoneError InternalError when the port is taken."""
        try:
            self._socket = open_listener("", here.port)
        except OSError as error:
            message = f"MASTER_PORT is {here.port}, which can't be listened on: {error.strerror}"
            raise HoneError(INTERNAL_ERROR, message, remedy="Choose another.") from None
        self._nodes = here.nodes
        self._members: dict[int, asyncio.StreamWriter] = {}
        self._strangers: dict[asyncio.StreamWriter, None] = {}
        self._lost: set[int] = set()
        self._words: dict[int, Word] = {}
        self._first: int | None = None
        self._begun = False
        self._closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_until_complete, args=(self._serve(),), name="gate", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(BEAT)

    async def _serve(self) -> None:
        async with await asyncio.start_server(self._attend, sock=self._socket, limit=LONGEST_LINE):
            while not self._closing.is_set():
                self._tell(**({} if self._begun else {"waiting": self._missing()}))
                try:
                    await asyncio.wait_for(self._closing.wait(), BEAT)
                except TimeoutError:
                    continue
            for writer in self._members.values():
                writer.close()  # closes after sending what was written

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read a launcher's messages until it has sent its result or is lost."""
        node = None
        if len(self._strangers) >= MOST_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.transport.abort()
        self._strangers[writer] = None
        try:
            hello = await _hear(reader)
            self._strangers.pop(writer, None)
            if self._begun or hello.get("nodes") != self._nodes or hello.get("node") not in range(self._nodes):
                return
            node = int(hello["node"])
            if node in self._members:  # the node's previous pod, from which nothing arrived any longer
                self._members[node].close()
            self._members[node] = writer
            if not self._missing():
                self._begun = True
                self._tell(begin=free_port())
            while node not in self._words:
                self._take(node, await _hear(reader))
            await self._closing.wait()
        except (OSError, ValueError):
            return
        finally:
            self._strangers.pop(writer, None)
            if node is None or self._members[node] is not writer:
                writer.close()
            elif not self._begun:
                self._members.pop(node).close()
            elif node not in self._words:
                self._lost.add(node)
                self._tell(over=f"Node {node} was lost")
                self._settle()

    def _take(self, node: int, said: dict[str, Any]) -> None:
        if "ending" in said:
            self._first = node if self._first is None else self._first
            self._tell(over=f"Node {node} ended")
        if "word" in said:
            self._words[node] = Word.model_validate(said["word"])
            self._settle()

    def _settle(self) -> None:
        if len(self._words) + len(self._lost) == self._nodes:
            self._tell(cause=None if self._lost else cause(self._words, self._first))
            self._closing.set()

    def _missing(self) -> list[int]:
        return [node for node in range(self._nodes) if node not in self._members]

    def _tell(self, **message: Any) -> None:
        for node, writer in self._members.items():
            if node not in self._lost and not writer.is_closing():
                writer.write(json.dumps(message).encode() + b"\n")


async def _hear(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Return one message. Raises OSError or ValueError when none arrives or it can't be parsed."""
    line = await asyncio.wait_for(reader.readline(), SILENCE)
    try:
        found = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(line)
    return found
