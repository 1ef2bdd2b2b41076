"""Read the cluster's nodes, at most every few seconds for all objects together.

Out: the nodes, or the names of the cordoned ones; None where the operator has no right to list nodes. No watch reports
nodes: a cluster may have thousands, and few objects need them. Used by the readers of both kinds.
"""

import asyncio
import time
from datetime import datetime

from hone_operator.diagnosis import liveness, pod_state
from hone_operator.diagnosis.nodes import ClusterNodes, list_dra_resources, read_node
from hone_operator.kube.client import Api, ApiError
from hone_operator.objects.resources import DEVICE_CLASSES, NODES, Object

# The nodes are used again for this many seconds, and for at least this many times as long as reading them took.
CLUSTER_SECONDS, CLUSTER_READ_FACTOR = 30.0, 20
CORDON_CACHE_SECONDS = 5.0
# A list of nodes that was forbidden is tried again after this time.
FORBIDDEN_RETRY_SECONDS = 600.0
DRA_DEVICE_CLASS = "gpu.amd.com"


class NodeReader:
    """Reads nodes, and keeps the last result for a while."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lock = asyncio.Lock()
        self._cluster: tuple[float, ClusterNodes | None] | None = None
        self._cordoned: tuple[float, frozenset[str] | None] = (0.0, None)

    async def read_cordoned(self) -> frozenset[str] | None:
        """Return the cordoned nodes, read at most every CORDON_CACHE_SECONDS; None where listing nodes is forbidden."""
        until, known = self._cordoned
        if time.monotonic() < until:
            return known
        try:
            nodes = self._api.iterate_items(NODES, "", fieldSelector="spec.unschedulable=true")
            found = frozenset([node["metadata"]["name"] async for node in nodes])
        except ApiError as error:
            if error.status != 403:
                raise
            self._cordoned = (time.monotonic() + FORBIDDEN_RETRY_SECONDS, None)
        else:
            self._cordoned = (time.monotonic() + CORDON_CACHE_SECONDS, found)
        return self._cordoned[1]

    async def read_cluster(self) -> ClusterNodes | None:
        """Return the nodes, read at most every CLUSTER_SECONDS; None where listing nodes is forbidden."""
        async with self._lock:  # by one worker for all: thousands of nodes take memory
            if self._cluster is None or time.monotonic() > self._cluster[0]:
                begun = time.monotonic()
                found = await self._read_nodes()
                now = time.monotonic()
                self._cluster = (now + max(CLUSTER_SECONDS, (now - begun) * CLUSTER_READ_FACTOR), found)
            return self._cluster[1]

    async def _read_nodes(self) -> ClusterNodes | None:
        try:
            nodes = tuple([read_node(node) async for node in self._api.iterate_items(NODES, "")])
        except ApiError as error:
            if error.status != 403:
                raise
            return None
        try:
            found = await self._api.get(DEVICE_CLASSES, "", DRA_DEVICE_CLASS)
        except ApiError:  # a cluster without the API, or older than it
            found = None
        return ClusterNodes(nodes, list_dra_resources(found))


def needs_nodes(pod: Object, last_answer_at: dict[str, datetime], now: datetime) -> bool:
    """Return whether only the nodes explain the state of a pod."""
    answered = last_answer_at.get(pod["metadata"]["uid"])
    return pod_state.is_unschedulable(pod) or liveness.is_suspect(pod, answered, now, liveness.DEFAULT_LIMITS)
