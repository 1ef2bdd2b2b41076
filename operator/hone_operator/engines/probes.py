"""The probes by which the kubelet checks an engine."""

from hone_operator.objects.resources import Object


def get(path: str) -> Object:
    return {"httpGet": {"path": path, "port": "http"}}


HEALTH = get("/health")
