"""A job that is tracked in the cluster: the link in its status, the curve on the server, and where the Secret goes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kube import Cluster, Images, condition, pod
from training import ONE_THREAD, TRAIN_SECONDS, furnish, job

Object = dict[str, Any]
PASSWORD = "only-for-the-tracker"
# Answers the calls of MLflow's client for one run, and keeps their bodies; the image has only MLflow's client.
SERVER = """
import base64, json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

calls = []
info = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "1", "status": "RUNNING", "start_time": 1,
        "artifact_uri": "file:///tmp", "lifecycle_stage": "active", "run_name": "tracked"}
experiment = {"experiment_id": "1", "name": "words", "artifact_location": "file:///tmp", "lifecycle_stage": "active"}
answers = {"experiments/get-by-name": {"experiment": experiment}, "experiments/get": {"experiment": experiment},
           "runs/search": {"runs": []}}

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/calls":
            return self.answer(calls)
        self.answer(self.find({}))
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        user = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        calls.append([self.path, body, user])
        self.answer(self.find(body))
    def find(self, body):
        method = self.path.partition("/api/2.0/mlflow/")[2].partition("?")[0]
        run = {"run": {"info": info, "data": {}}, "run_info": info}
        return answers.get(method, run if method.startswith("runs/") else {})
    def answer(self, found):
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

ThreadingHTTPServer(("", 5000), Handler).serve_forever()
"""
READ = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:5000/calls').read().decode())"


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with the tracker, and the Secret for it."""
    with hone.fresh_namespace("tracking") as namespace:
        furnish(hone, images, namespace)
        secret = {"MLFLOW_TRACKING_USERNAME": "hone", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
        hone.create(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mlflow"}, "stringData": secret},
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "mlflow"},
                "spec": {"selector": {"app": "mlflow"}, "ports": [{"port": 5000}]},
            },
            namespace=namespace,
        )
        probe = {"readinessProbe": {"tcpSocket": {"port": 5000}, "periodSeconds": 1}}
        hone.create(pod("mlflow", images.operator, "python3", "-c", SERVER, **probe), namespace=namespace)
        hone.wait("pod", "mlflow", condition("Ready"), namespace)
        yield namespace


def tracked(name: str, uri: str) -> Object:
    tracking = {"mlflow": {"uri": uri, "experiment": "words", "secret": {"name": "mlflow"}}}
    return job(name, tracking=tracking, pod=ONE_THREAD)


def train(hone: Cluster, lab: str, made: Object) -> Object:
    name = made["metadata"]["name"]
    hone.create(made, namespace=lab)
    failed = condition("Failed")
    return hone.wait("finetunejob", name, condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=failed)


def test_the_link_is_in_the_status_and_the_curve_on_the_server(hone: Cluster, lab: str) -> None:
    done = train(hone, lab, tracked("tracked", "http://mlflow:5000"))
    [report] = done["status"]["tracking"]
    assert report == {"name": "mlflow", "url": "http://mlflow:5000/#/experiments/1/runs/r1", "unsent": 0}
    calls = json.loads(hone.kubectl("exec", "mlflow", "--", "python3", "-c", READ, namespace=lab))
    logged = [value for path, body, _ in calls if path.endswith("/runs/log-batch") for value in body.get("metrics", [])]
    assert [value["step"] for value in logged if value["key"] == "loss"] == [1, 2, 3, 4]
    assert {user for _, _, user in calls} == {f"hone:{PASSWORD}"}
    assert PASSWORD not in json.dumps(hone.list("jobs", lab)) + json.dumps(hone.list("configmaps", lab))


def test_a_tracker_that_is_not_there_does_not_stop_the_job(hone: Cluster, lab: str) -> None:
    done = train(hone, lab, tracked("untracked", "http://mlflow:5001"))
    [report] = done["status"]["tracking"]
    assert report["unsent"] == 4
    assert report["message"]
