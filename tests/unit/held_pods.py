"""Pods that another container keeps after the trainer's end."""

from typing import Any

from hone_operator.objects.resources import Object
from observed import pod


def held(state: Object, name: str = "p1", *, sidecar: Object | None = None, index: int = 0, **more: Any) -> Object:
    """Return a pod whose trainer has ended, and in which istio-proxy is still in the state `sidecar`."""
    found = pod(name, terminated=state, **more)
    found["metadata"]["labels"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    found["status"]["phase"] = "Running"
    found["spec"]["containers"].append({"name": "istio-proxy", "image": "proxyv2"})
    found["status"]["containerStatuses"].append(
        {
            "name": "istio-proxy",
            "restartCount": 0,
            "state": sidecar or {"running": {"startedAt": "2026-03-01T11:00:00Z"}},
        }
    )
    return found
