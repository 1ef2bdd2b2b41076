"""Rendezvous of the launchers of all nodes: a TCP server in a thread of node 0's launcher.

Training begins when all launchers are connected. From then on, each is notified when a node is lost or a process ends.
When every node has ended, the server decides which node caused a failure that has no name. Each message is a line of
JSON; a side that sends nothing for HEARTBEAT_TIMEOUT_SECONDS counts as lost. `coordinator_client` is the other side.

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

from hone_trainer.distributed.ranks import Rendezvous, find_free_port
from hone_trainer.distributed.results import WorkerResult, find_root_cause_node

# Seconds between two messages, and seconds of silence after which the other side is lost.
HEARTBEAT_SECONDS, HEARTBEAT_TIMEOUT_SECONDS = 2.0, 12.0
# Seconds that the other nodes have to report their results after this node has ended.
SHUTDOWN_GRACE_SECONDS = 20.0
# Connections that have not sent a first message yet, and bytes in a line: any process in the network may connect.
MAX_UNIDENTIFIED, MAX_LINE_BYTES = 64, 16 << 10


class Coordinator:
    """The rendezvous server, as a context manager: it accepts launchers inside the context."""

    def __init__(self, here: Rendezvous) -> None:
        """Listen on the port. Raises HoneError InternalError when the port is taken."""
        try:
            self._socket = open_listener("", here.port)
        except OSError as error:
            message = f"MASTER_PORT is {here.port}, which can't be listened on: {error.strerror}"
            raise HoneError(INTERNAL_ERROR, message, remedy="Choose another.") from None
        self._node_count = here.nodes
        self._launchers: dict[int, asyncio.StreamWriter] = {}
        self._unidentified: dict[asyncio.StreamWriter, None] = {}
        self._lost_nodes: set[int] = set()
        self._results: dict[int, WorkerResult] = {}
        self._first_ended_node: int | None = None
        self._has_begun = False
        self._closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(
            target=self._loop.run_until_complete, args=(self._serve_until_closed(),), name="coordinator", daemon=True
        )

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._thread.join(SHUTDOWN_GRACE_SECONDS)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(HEARTBEAT_SECONDS)

    async def _serve_until_closed(self) -> None:
        async with await asyncio.start_server(self._serve_launcher, sock=self._socket, limit=MAX_LINE_BYTES):
            while not self._closing.is_set():
                self._broadcast(**({} if self._has_begun else {"waiting": self._list_missing_nodes()}))
                try:
                    await asyncio.wait_for(self._closing.wait(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    continue
            for writer in self._launchers.values():
                writer.close()  # closes after sending what was written

    async def _serve_launcher(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read a launcher's messages until it has sent its result or is lost."""
        node = None
        if len(self._unidentified) >= MAX_UNIDENTIFIED:
            oldest = next(iter(self._unidentified))
            del self._unidentified[oldest]
            oldest.transport.abort()
        self._unidentified[writer] = None
        try:
            hello = await _read_message(reader)
            self._unidentified.pop(writer, None)
            if (
                self._has_begun
                or hello.get("nodes") != self._node_count
                or hello.get("node") not in range(self._node_count)
            ):
                return
            node = int(hello["node"])
            if node in self._launchers:  # the node's previous pod, from which nothing arrived any longer
                self._launchers[node].close()
            self._launchers[node] = writer
            if not self._list_missing_nodes():
                self._has_begun = True
                self._broadcast(begin=find_free_port())
            while node not in self._results:
                self._handle_message(node, await _read_message(reader))
            await self._closing.wait()
        except (OSError, ValueError):
            return
        finally:
            self._unidentified.pop(writer, None)
            if node is None or self._launchers[node] is not writer:
                writer.close()
            elif not self._has_begun:
                self._launchers.pop(node).close()
            elif node not in self._results:
                self._lost_nodes.add(node)
                self._broadcast(over=f"Node {node} was lost")
                self._finish_if_all_ended()

    def _handle_message(self, node: int, message: dict[str, Any]) -> None:
        if "ending" in message:
            self._first_ended_node = node if self._first_ended_node is None else self._first_ended_node
            self._broadcast(over=f"Node {node} ended")
        if "word" in message:
            self._results[node] = WorkerResult.model_validate(message["word"])
            self._finish_if_all_ended()

    def _finish_if_all_ended(self) -> None:
        if len(self._results) + len(self._lost_nodes) == self._node_count:
            self._broadcast(
                cause=None if self._lost_nodes else find_root_cause_node(self._results, self._first_ended_node)
            )
            self._closing.set()

    def _list_missing_nodes(self) -> list[int]:
        return [node for node in range(self._node_count) if node not in self._launchers]

    def _broadcast(self, **message: Any) -> None:
        for node, writer in self._launchers.items():
            if node not in self._lost_nodes and not writer.is_closing():
                writer.write(json.dumps(message).encode() + b"\n")


async def _read_message(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Return one message. Raises OSError or ValueError when none arrives or it can't be parsed."""
    line = await asyncio.wait_for(reader.readline(), HEARTBEAT_TIMEOUT_SECONDS)
    try:
        found = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(line)
    return found
