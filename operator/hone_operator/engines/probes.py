"""The probes by which the kubelet checks an engine."""

from hone_operator.objects.resources import Object


def build_http_probe(path: str) -> Object:
    return {"httpGet": {"path": path, "port": "http"}}


HEALTH_PROBE = build_http_probe("/health")
