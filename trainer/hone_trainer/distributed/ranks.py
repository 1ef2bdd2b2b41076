"""Ranks: how many nodes and processes train together, and which of them this is. Pure, apart from `find_free_port`.

The environment variables are torchrun's. Its launcher is not used: when stopped, it gives the workers 30 seconds to
save a checkpoint, and it returns 1 however they ended.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from hone_api.reasons import INVALID_SPEC, HoneError

_NODE_RANK = ("NODE_RANK", "JOB_COMPLETION_INDEX")
RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
MASTER_ADDR, MASTER_PORT = "MASTER_ADDR", "MASTER_PORT"


@dataclass(frozen=True)
class Rendezvous:
    """The number of nodes, this node's index, and the address and port of node 0."""

    nodes: int
    node_rank: int
    address: str
    port: int


@dataclass(frozen=True)
class Rank:
    """One process among all. `local_rank` counts within its node and is the index of its GPU."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int

    def to_environ(self) -> dict[str, str]:
        """Return the environment variables that torchrun sets for a worker."""
        return {
            RANK: str(self.rank),
            WORLD_SIZE: str(self.world_size),
            LOCAL_RANK: str(self.local_rank),
            LOCAL_WORLD_SIZE: str(self.local_world_size),
            MASTER_ADDR: self.master_addr,
            MASTER_PORT: str(self.master_port),
        }

    @staticmethod
    def from_environ(environ: Mapping[str, str]) -> "Rank":
        """Return the process that `to_environ` describes."""
        rank, size, local_rank, local_size, port = (
            int(environ[name]) for name in (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_PORT)
        )
        return Rank(rank, size, local_rank, local_size, environ[MASTER_ADDR], port)


def make_local_ranks(here: Rendezvous, processes: int) -> list[Rank]:
    """Return the places of this node's processes; every node has `processes` of them."""
    return [
        Rank(here.node_rank * processes + local, here.nodes * processes, local, processes, here.address, here.port)
        for local in range(processes)
    ]


def find_rendezvous(nodes: int, environ: Mapping[str, str]) -> Rendezvous:
    """Return the nodes as the environment describes them, or a free local port when there is one node.

    Raises HoneError InvalidSpec when a variable is missing or wrong.
    """
    if nodes == 1:
        return Rendezvous(1, 0, "127.0.0.1", find_free_port())
    node = next((environ[name] for name in _NODE_RANK if name in environ), "")
    address, port = environ.get(MASTER_ADDR, ""), environ.get(MASTER_PORT, "")
    for name, value in ((" or ".join(_NODE_RANK), node), (MASTER_PORT, port)):
        if not value.isdigit():
            raise _make_variable_error(nodes, name, value)
    if not address:
        raise _make_variable_error(nodes, MASTER_ADDR, address)
    if int(node) >= nodes:
        raise HoneError(INVALID_SPEC, f"--nnodes is {nodes}, and this is node {node}, where 0 is the first")
    return Rendezvous(nodes, int(node), address, int(port))


def _make_variable_error(nodes: int, name: str, value: str) -> HoneError:
    found = f"is {value!r}" if value else "is not set"
    return HoneError(
        INVALID_SPEC,
        f"--nnodes is {nodes}, and the environment variable {name} {found}",
        remedy="On every node set NODE_RANK (from 0), and MASTER_ADDR and MASTER_PORT: where node 0 can be reached.",
    )


def find_free_port() -> int:
    """Return a port of this machine on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
