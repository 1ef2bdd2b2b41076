"""Read events and claims that explain why pods and Jobs do not start.

In: pods, or a Job. Out: the text of a warning, or an autoscaler's report. Events are not watched: they are read only
where an object is late. Used by the readers of both kinds.
"""

from datetime import datetime

from hone_operator.diagnosis import events, pod_state, volumes
from hone_operator.diagnosis.autoscalers import ScalingReport
from hone_operator.kube.client import Api
from hone_operator.objects.resources import CLAIMS, EVENTS, Object

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


class EventReader:
    """Reads the events about an object from the API server."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def find_warning(self, about: Object) -> str | None:
        """Return the newest warning about an object that still holds; None without one."""
        return events.find_standing_warning(await self._read_events(about))

    async def explain_pods(self, pods: list[Object], now: datetime) -> str | None:
        """Return why the first pod that takes too long to start does not start."""
        for pod in pods:
            if pod_state.is_slow_to_start(pod, now):
                return await self.find_warning(pod)
            if pod_state.waits_for_volumes(pod, now):
                return await self._explain_claims(pod)
        return None

    async def find_scaling(self, pods: list[Object], now: datetime) -> ScalingReport | None:
        """Return what an autoscaler reports about the newest pod that no node takes."""
        waiting = pod_state.find_newest_pod(pod for pod in pods if pod_state.waits_for_node(pod, now))
        return events.find_scaling_report(await self._read_events(waiting)) if waiting else None

    async def explain_queue(self, job: Object | None) -> str | None:
        """Return why Kueue does not admit the Job, from the events: the operator has no right to read the Workload."""
        if job is None or QUEUE_LABEL not in (job["metadata"].get("labels") or {}):
            return None
        selector = "involvedObject.kind=Workload,type=Warning"
        found = await events.read_events(
            self._api.iterate_items(EVENTS, job["metadata"]["namespace"], fieldSelector=selector)
        )
        return events.find_workload_event(found, job["metadata"]["name"])

    async def _explain_claims(self, pod: Object) -> str | None:
        namespace = pod["metadata"]["namespace"]
        found = []
        for name in volumes.list_claims(pod):
            claim = await self._api.get(CLAIMS, namespace, name)
            event = events.find_newest_event(await self._read_events(claim)) if claim else None
            found.append(volumes.explain_unbound_claim(name, claim, event.get("message") if event else None))
        return " ".join(text for text in found if text) or None

    async def _read_events(self, about: Object) -> list[Object]:
        selector = f"involvedObject.uid={about['metadata']['uid']}"
        return await events.read_events(
            self._api.iterate_items(EVENTS, about["metadata"]["namespace"], fieldSelector=selector)
        )
