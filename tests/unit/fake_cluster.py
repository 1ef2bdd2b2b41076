"""An API server of Kubernetes that knows only what a test gives it, and the kubeconfig for it.

Pods that are created run at once. A command in a pod runs here, with the folder `claim` in place of its claim.
"""

import base64
import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from hone.kube.cluster import kubeconfig

Object = dict[str, Any]
HONE = "/apis/hone.dev/v1alpha1/namespaces/ns"
CORE = "/api/v1/namespaces/ns"
PLURALS = (
    *("finetunejobs", "inferenceservices", "pods", "jobs", "cronjobs", "deployments", "statefulsets", "daemonsets"),
    *("events", "persistentvolumeclaims"),
)
DIGEST = "sha256:" + "0123456789ab" + "c" * 52
# A log whose connection is cut after this many bytes of an answer.
Cut = tuple[bytes, int | None]


@dataclass
class FakeCluster:
    """Objects by path, lists by path, logs by pod. `refused`: paths that are forbidden. `calls`: what was requested.

    `reply` gets method and path of a request, and may return the status of a failure; 0: no answer at all.
    """

    objects: dict[str, Object] = field(default_factory=dict)
    lists: dict[str, list[Object]] = field(default_factory=dict)
    logs: dict[str, list[Cut]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    reply: Callable[[str, str], int | None] = lambda method, path: None
    has_hone: bool = True
    claim: Path | None = None
    frame_seconds: float = 0.0
    calls: list[tuple[str, str, Any]] = field(default_factory=list)

    def add(self, plural: str, body: Object, path: str = HONE) -> None:
        """Add an object and its entry in the list of its namespace."""
        self.objects[f"{path}/{plural}/{body['metadata']['name']}"] = body
        self.lists.setdefault(f"{path}/{plural}", []).append(body)


def status(code: int, message: str) -> Object:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}


class ClusterHandler(BaseHTTPRequestHandler):
    """Answers as the API server of `fake`, which a subclass sets."""

    fake: FakeCluster

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.fake.calls.append(("GET", url.path, query))
        if self._is_replied(url.path):
            return
        if url.path in self.fake.refused:
            self._send(403, status(403, f'cannot list resource "{url.path.rpartition("/")[2]}"'))
        elif not self.fake.has_hone and url.path.startswith(HONE):
            self._send(404, None)
        elif url.path.endswith("/exec"):
            self._exec(url.path.removesuffix("/exec"), parse_qs(url.query)["command"])
        elif url.path.endswith("/log"):
            self._send_log(url.path.split("/")[-2])
        elif url.path in self.fake.objects:
            self._send(200, self.fake.objects[url.path])
        elif url.path in self.fake.lists or url.path.rpartition("/")[2] in PLURALS:
            self._send(200, {"kind": "List", "items": self._select(self.fake.lists.get(url.path, []), query)})
        elif url.path.startswith((HONE, CORE)):
            self._send(404, status(404, f"{url.path.rpartition('/')[2]} not found"))
        else:
            self._send(404, None)

    def _is_replied(self, path: str) -> bool:
        code = self.fake.reply(self.command, path)
        if code:
            self._send(code, status(code, "failed by the test"))
        elif code == 0:
            self.close_connection = True
            self.rfile.read(1)  # until the client is gone
        return code is not None

    def do_PATCH(self) -> None:
        self._change()

    def do_POST(self) -> None:
        self._change()

    def do_DELETE(self) -> None:
        self._change()

    def _change(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        path = urlsplit(self.path).path
        self.fake.calls.append((self.command, path, body))
        if self._is_replied(path):
            return
        if path.endswith("selfsubjectaccessreviews"):
            attributes = body["spec"]["resourceAttributes"]
            named = "/".join(filter(None, [attributes["resource"], attributes["subresource"]]))
            self._send(201, {"status": {"allowed": f"{attributes['verb']} {named}" not in self.fake.refused}})
            return
        if self.command == "POST" and path.endswith("/pods"):
            self.fake.objects[f"{path}/{body['metadata']['name']}"] = body | {"status": {"phase": "Running"}}
        if self.command == "PATCH" and "apply-patch" in self.headers["Content-Type"]:
            before = self.fake.objects.get(path, {})
            metadata = {"uid": f"uid-{path}", "namespace": "ns"} | before.get("metadata", {}) | body["metadata"]
            self.fake.objects[path] = before | body | {"metadata": metadata}
            self._send(200, self.fake.objects[path])
            return
        if self.command == "DELETE":
            self.fake.objects.pop(path, None)
        self._send(200, {"kind": "Status", "status": "Success"})

    def _exec(self, pod: str, command: list[str]) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
        self.end_headers()
        self.close_connection = True
        variables = {each["name"]: each["value"] for each in self.fake.objects[pod]["spec"]["containers"][0]["env"]}
        script = {name: text.replace('"/output"', repr(str(self.fake.claim))) for name, text in variables.items()}
        pipe = subprocess.PIPE
        python = [sys.executable, *(part.replace("/output", str(self.fake.claim)) for part in command[1:])]
        with subprocess.Popen(python, env=os.environ | script, stdout=pipe, stderr=pipe) as running:
            assert running.stdout
            assert running.stderr
            try:
                while piece := running.stdout.read1(32768):
                    self._send_frame(1, piece)
                    time.sleep(self.fake.frame_seconds)
                self._send_frame(2, running.stderr.read())
                self._send_frame(3, json.dumps(self._make_status(running.wait())).encode())
                self.connection.shutdown(SHUT_RDWR)
            except OSError:  # the client is gone
                running.kill()

    def _make_status(self, code: int) -> Object:
        causes = [{"reason": "ExitCode", "message": str(code)}]
        return {"status": "Failure", "details": {"causes": causes}} if code else {"status": "Success"}

    def _send_frame(self, channel: int, data: bytes) -> None:
        if data:
            self.wfile.write(struct.pack(">BBQ", 0x82, 127, len(data) + 1) + bytes([channel]) + data)

    def _select(self, items: list[Object], query: dict[str, str]) -> list[Object]:
        labels = dict(each.split("=") for each in query.get("labelSelector", "").split(",") if each)
        return [each for each in items if labels.items() <= (each["metadata"].get("labels") or {}).items()]

    def _send_log(self, pod: str) -> None:
        content, length = self.fake.logs[pod].pop(0)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if length is None else content[:length])
        self.close_connection = True

    def _send(self, code: int, body: Object | None) -> None:
        content = json.dumps(body).encode() if body else b"404 page not found\n"
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serve(fake: FakeCluster, folder: Path, monkeypatch: Any) -> Iterator[None]:
    """Serve the fake cluster, and make it the user's current context with the namespace `ns`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (ClusterHandler,), {"fake": fake}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    path = write_kubeconfig(folder, f"http://127.0.0.1:{server.server_address[1]}")
    # The client reads KUBECONFIG when it is imported.
    monkeypatch.setattr(kubeconfig.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    try:
        yield
    finally:
        server.shutdown()


def write_kubeconfig(folder: Path, address: str) -> Path:
    """Write a kubeconfig whose current context is the server at this address, and return its path."""
    config = {
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "t", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
        "current-context": "t",
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def job(name: str = "faq", stage: str | None = "Succeeded", spec: Object | None = None, **status: Any) -> Object:
    artifact = {"kind": "adapter", "claim": name, "path": f"ns/{name}", "digest": DIGEST, "baseModel": "a/b"}
    found = {"stage": stage, **({"artifact": artifact} if stage == "Succeeded" else {}), **status}
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "creationTimestamp": "2026-03-01T10:00:00Z",
        },
        "spec": {"model": {"name": "a/b"}, **(spec or {})},
        "status": found,
    }


def service(name: str = "chat", model: Object | None = None, **status: Any) -> Object:
    return job(name, None) | {
        "kind": "InferenceService",
        "spec": {"model": model or {"fineTuneJob": {"name": "faq"}}},
        "status": status,
    }


def pod(name: str, component: str, created: str = "2026-03-01T10:00:00Z", **more: Any) -> Object:
    labels = {
        "app.kubernetes.io/component": component,
        "hone.dev/finetunejob": "faq",
        "hone.dev/inferenceservice": "chat",
    }
    running = {"name": component, "state": {"running": {"startedAt": created}}}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "uid": name, "creationTimestamp": created, "labels": labels},
        "spec": {},
        "status": {"phase": "Running", "containerStatuses": [running]},
    } | more
