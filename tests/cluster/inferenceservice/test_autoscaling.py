"""Autoscaling by load: the condition before and after the cluster serves the metric, and a scale-up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube import CONNECT, Cluster, Images, claim, condition, pod, run
from tiny_model import put_model
from training import ONE_THREAD, SERVE_SECONDS

Object = dict[str, Any]
API = "v1beta2.custom.metrics.k8s.io"
# A small custom-metrics API. It reads from the engines the values that prometheus-adapter would get from Prometheus.
METRICS_API = """
import http.server, json, os, pathlib, ssl, time, urllib.request
MINE = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
VERSION, METRIC = "custom.metrics.k8s.io/v1beta2", "hone_engine_requests"
def pods(namespace):
    path = f"/api/v1/namespaces/{namespace}/pods?labelSelector=hone.dev/inferenceservice"
    headers = {"Authorization": "Bearer " + (MINE / "token").read_text()}
    context = ssl.create_default_context(cafile=MINE / "ca.crt")
    request = urllib.request.Request("https://kubernetes.default.svc" + path, headers=headers)
    return json.load(urllib.request.urlopen(request, context=context, timeout=10))["items"]
def value(namespace, pod):
    try:
        text = urllib.request.urlopen(f"http://{pod['status']['podIP']}:8000/metrics", timeout=5).read().decode()
    except (OSError, KeyError):
        return None
    counted = ("hone:num_requests_running{", "hone:num_requests_waiting{")
    load = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(counted))
    name = pod["metadata"]["name"]
    about = {"kind": "Pod", "apiVersion": "v1", "namespace": namespace, "name": name}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"describedObject": about, "metric": {"name": METRIC}, "timestamp": now, "value": str(int(load))}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["apis", *VERSION.split("/")]:
            known = {"name": f"pods/{METRIC}", "singularName": "", "namespaced": True, "kind": "MetricValueList",
                     "verbs": ["get"]}
            self.answer(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION,
                              "resources": [known]})
        elif len(parts) == 8 and parts[3] == "namespaces" and parts[7] == METRIC:
            found = [value(parts[4], pod) for pod in pods(parts[4])]
            self.answer(200, {"kind": "MetricValueList", "apiVersion": VERSION, "metadata": {},
                              "items": [one for one in found if one]})
        else:
            self.answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})
    def answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
pathlib.Path("/tmp/pem").write_text(os.environ["PEM"])
server = http.server.ThreadingHTTPServer(("", 8443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
LOAD = (
    CONNECT
    + """
import json, sys, threading, urllib.parse, urllib.request
url = sys.argv[1]
connect(urllib.parse.urlsplit(url).hostname, 80)
body = json.dumps({"model": "tiny", "prompt": "ping", "max_tokens": 400, "ignore_eos": True}).encode()
def ask():
    while True:
        request = urllib.request.Request(url + "/completions", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=120).read()
for _ in range(6):
    threading.Thread(target=ask).start()
"""
)


@pytest.fixture
def lab(hone: Cluster, images: Images, tmp_path: Path) -> Iterator[str]:
    """Yield a namespace with a tiny model, and a custom-metrics API that is not registered yet."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    curve = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=metrics",
    ]
    run("openssl", "req", "-x509", *curve, "-keyout", key, "-out", certificate)
    pem = {"name": "PEM", "value": key.read_text() + certificate.read_text()}
    server = pod("metrics", images.operator, "python3", "-c", METRICS_API, env=[pem])
    server["spec"] |= {"serviceAccountName": "metrics", "automountServiceAccountToken": True}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    with hone.fresh_namespace("autoscaling") as namespace:
        subject = {"kind": "ServiceAccount", "name": "metrics", "namespace": namespace}
        binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "metrics"}}
        ports = [{"port": 443, "targetPort": 8443}]
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "metrics"}}
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "metrics"}}
        service["spec"] = {"selector": {"app": "metrics"}, "ports": ports}
        hone.create(
            claim("models"),
            account,
            binding | {"roleRef": role, "subjects": [subject]},
            service,
            namespace=namespace,
        )
        hone.create(server, namespace=namespace)
        put_model(hone, images, namespace)
        try:
            yield namespace
        finally:
            # A registered API without a server would block the deletion of the namespace.
            hone.kubectl("delete", "apiservice", API, "--ignore-not-found")


def test_engines_follow_their_load_as_soon_as_the_cluster_serves_it(hone: Cluster, images: Images, lab: str) -> None:
    if hone.get("apiservice", API) or hone.get("apiservice", "v1beta1.custom.metrics.k8s.io"):
        pytest.skip("NOT RUN: this cluster has a custom-metrics API of its own, which the test would displace")
    spec = {
        "model": {"claim": {"name": "models", "path": "tiny"}},
        "autoscaling": {"maxReplicas": 2, "targetConcurrency": 1},
        "resources": {"gpus": 0, "sharedMemory": "64Mi"},
        "pod": ONE_THREAD,
    }
    owner = {"apiVersion": "hone.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": "chat"}, "spec": spec}
    hone.create(owner, namespace=lab)
    hone.wait("inferenceservice", "chat", condition("Available"), lab, timeout=SERVE_SECONDS)
    service = hone.wait("inferenceservice", "chat", has_scaling_reason("LoadNotServed"), lab)
    assert "custom metrics API" in read_scaling_message(service)
    assert "prometheus-adapter" in read_scaling_message(service)

    group, version = API.partition(".")[2], API.partition(".")[0]
    registered = {
        "service": {"name": "metrics", "namespace": lab},
        "group": group,
        "version": version,
        "insecureSkipTLSVerify": True,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
    }
    kind = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": API}}
    hone.create(kind | {"spec": registered})
    hone.wait("apiservice", API, condition("Available"))
    hone.wait("inferenceservice", "chat", has_scaling_reason("ValidMetricFound"), lab)
    assert hone.get("deployment", "chat", lab)["spec"]["replicas"] == 1

    hone.create(pod("load", images.operator, "python3", "-c", LOAD, f"http://chat.{lab}.svc/v1"), namespace=lab)
    both = lambda found: found["status"].get("readyReplicas") == 2  # noqa: E731
    hone.wait("inferenceservice", "chat", both, lab, timeout=SERVE_SECONDS)
    hone.wait("poddisruptionbudget", "chat", lambda found: found["spec"]["maxUnavailable"] == 1, lab)

    with pytest.raises(AssertionError, match="remove replicas, or remove autoscaling"):
        hone.kubectl("scale", "inferenceservice", "chat", "--replicas=3", namespace=lab)
    hone.kubectl(
        "patch", "inferenceservice", "chat", "--type=merge", '--patch={"spec":{"autoscaling":null}}', namespace=lab
    )
    hone.wait_gone("horizontalpodautoscaler", "chat", lab)
    hone.wait("deployment", "chat", lambda found: found["spec"]["replicas"] == 1, lab)


def has_scaling_reason(reason: str) -> Any:
    return lambda found: [c for c in conditions(found) if (c["type"], c["reason"]) == ("ScalingActive", reason)]


def read_scaling_message(found: Object) -> str:
    [message] = [c["message"] for c in conditions(found) if c["type"] == "ScalingActive"]
    return str(message)


def conditions(found: Object) -> list[Object]:
    return list(found.get("status", {}).get("conditions", []))
