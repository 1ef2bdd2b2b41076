"""Clusters and kubeconfigs that are no help: silent, foreign, broken, or with values that end up in a terminal."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_cluster import HONE, FakeCluster, job
from hone.errors import ClientError
from hone.kube import cluster, exec_socket
from hone.kube.cluster import Cluster, kubeconfig
from hone.objects import views
from hone_cli.main import main
from hone_cli.ui import output
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException

Hone = Callable[..., tuple[int, str, str]]
HIDDEN = "TOPSECRET"


@contextmanager
def answering(status: int, content: bytes) -> Iterator[str]:
    """Serve one answer to every request, and yield the server's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """Accept connections and answer nothing. Yield the address and the connections."""
    accepted: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                accepted.append(listening.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", accepted


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes a kubeconfig for a server the user's own. A value None leaves a key out."""

    def write(server: str = "http://127.0.0.1:1", **changed: Any) -> None:
        config = {
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "t", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
            "current-context": "t",
            **{name.replace("_", "-"): value for name, value in changed.items()},
        }
        text = yaml.safe_dump({name: value for name, value in config.items() if value is not None})
        (tmp_path / "kubeconfig").write_text(text)
        monkeypatch.setattr(kubeconfig.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))

    return write


@pytest.mark.parametrize("text", ["{{{", "- a\n", "hello", "\x00", "contexts: [1]\ncurrent-context: x\n", ""])
def test_a_broken_kubeconfig_is_one_message(
    text: str, configure: Callable[..., None], hone: Hone, tmp_path: Path
) -> None:
    configure()
    (tmp_path / "kubeconfig").write_text(text)
    code, out, err = hone("list")
    assert (code, out) == (1, "")
    assert err.startswith(("✗ the kubeconfig can't be read", "✗ no cluster"))
    assert "Traceback" not in err


@pytest.mark.parametrize("current", [None, "", "gone"])
def test_a_named_context_needs_no_current_one(
    current: str | None, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(current_context=current)
    assert cluster.connect("t", None).namespace == "ns"
    assert cluster.connect("t", "other").namespace == "other"
    with pytest.raises(ClientError, match="no cluster"):
        cluster.connect(None, None)


@pytest.mark.parametrize("token", [f"{HIDDEN}\nmore", f"{HIDDEN}\u2026"])
def test_a_token_that_cant_be_sent_is_not_printed(
    token: str, configure: Callable[..., None], hone: Hone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_verbose", False)
    configure(users=[{"name": "u", "user": {"token": token}}])
    code, _, err = hone("list", "--verbose")
    assert code == 1
    assert "the kubeconfig's token has a line feed" in err
    assert HIDDEN not in err


@pytest.mark.parametrize("content", [b"<html>", b"null", b"[]", b'"x"', b""])
def test_what_is_no_kubernetes_is_named(content: bytes, configure: Callable[..., None], hone: Hone) -> None:
    with answering(200, content) as address:
        configure(address)
        for arguments in (["list"], ["describe", "faq"], ["suspend", "faq"]):
            code, _, err = hone(*arguments)
            assert code == 1
            assert "something else than Kubernetes answers" in err


def test_a_list_without_an_end_ends(configure: Callable[..., None], hone: Hone) -> None:
    with answering(200, json.dumps({"items": [], "metadata": {"continue": "again"}}).encode()) as address:
        configure(address)
        code, _, err = hone("list")
    assert code == 1
    assert "the same page again" in err


def test_a_silent_server_is_asked_once(
    configure: Callable[..., None], hone: Hone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hone.kube.rest.TIMEOUT", (0.5, 0.5))
    with silent() as (address, accepted):
        configure(address)
        code, _, err = hone("list")
        assert len(accepted) == 1
    assert code == 1
    assert "the cluster can't be reached" in err
    assert "Max retries" not in err


def test_completion_asks_a_silent_server_once(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"_HONE_COMPLETE": "complete_bash", "COMP_WORDS": "hone describe f", "COMP_CWORD": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("hone_cli.ui.completion.TIMEOUT", (0.5, 0.5))
    with silent() as (address, accepted):
        configure(address)
        with pytest.raises(SystemExit):
            main([])
        assert len(accepted) == 1
    assert capsys.readouterr().err == ""


def test_a_command_in_a_pod_is_sent_with_the_users_token(configure: Callable[..., None]) -> None:
    received: list[bytes] = []

    def answer() -> None:
        connection, _ = listening.accept()
        received.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering_once = threading.Thread(target=answer)
        answering_once.start()
        configure(f"http://127.0.0.1:{listening.getsockname()[1]}", users=[{"name": "u", "user": {"token": "abc"}}])
        with pytest.raises(ApiException):
            exec_socket.open_exec(cluster.connect(None, None), "p", "reader", ["a b", "c&d"])
        answering_once.join()
    lines = received[0].decode().split("\r\n")
    assert lines[0].startswith("GET /api/v1/namespaces/ns/pods/p/exec?container=reader&stdin=false")
    assert "&command=a%20b&command=c%26d " in lines[0]
    assert "authorization: bearer abc" in [line.lower() for line in lines]


@pytest.mark.parametrize("name", [".", "..", "ftj/..", "faq?x=1", "a b", "ftj/faq%2f..", "\x1b[31m", "Faq", "ü", "-a"])
def test_what_is_no_name_is_never_requested(name: str, fake: FakeCluster, hone: Hone) -> None:
    fake.add("finetunejobs", job())
    for command in (["describe"], ["logs"], ["delete", "--yes"], ["suspend"], ["pull"], ["watch"]):
        code, _, err = hone(*command, "--", name)
        assert code == 1
        assert "is no name" in err
    assert not fake.calls


@pytest.mark.parametrize("namespace", ["..", "a/../b", "a?b"])
def test_what_is_no_namespace_is_never_requested(namespace: str, fake: FakeCluster, hone: Hone) -> None:
    code, _, err = hone("list", "--namespace", namespace)
    assert code == 1
    assert "--namespace" in err
    assert not fake.calls


def test_a_next_step_names_the_same_cluster(fake: FakeCluster, hone: Hone) -> None:
    fake.add("finetunejobs", job(stage="Training"))
    _, _, err = hone("suspend", "faq", "--context", "t")
    assert "hone watch faq --namespace ns --context t" in err
    assert Cluster(ApiClient(), "ns", "my ctx").flags == "--namespace ns --context 'my ctx'"


@pytest.mark.parametrize(
    ("status", "message", "remedy"),
    [
        (401, "Unauthorized", "Log in again"),
        (403, 'pods is forbidden: User "me" cannot create resource "pods"', "Ask for the right"),
        (403, 'pods "x" is forbidden: exceeded quota: q, requested: cpu=50m', "kubectl describe quota"),
        (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest"', "A rule of the cluster"),
        (500, "etcd is away", "Try again"),
    ],
)
def test_a_refusal_gets_the_remedy_of_its_cause(status: int, message: str, remedy: str) -> None:
    error = ApiException(status=status, reason="x")
    error.body = json.dumps({"message": message})
    found = cluster.explain_error("pod x", error)
    assert found.message == f"pod x: {message}"
    assert remedy in found.remedy


def test_a_kind_that_may_not_be_read_can_be_left_out(fake: FakeCluster, hone: Hone) -> None:
    fake.add("finetunejobs", job())
    fake.refused.add(f"{HONE}/inferenceservices/faq")
    assert "Name the kind: ftj/faq or hisvc/faq." in hone("describe", "faq")[2]
    assert hone("describe", "ftj/faq")[0] == 0


def test_a_message_of_several_lines_is_shown_in_one(fake: FakeCluster, hone: Hone) -> None:
    condition = {
        "type": "Failed",
        "status": "True",
        "reason": "DatasetInvalid",
        "message": "row 1 is x\n✓ faq succeeded",
    }
    fake.add("finetunejobs", job(stage="Failed", conditions=[condition]))
    for command in ("describe", "watch"):
        _, out, _ = hone(command, "faq")
        assert "DatasetInvalid: row 1 is x ✓ faq succeeded" in out
        assert not [line for line in out.splitlines() if line.startswith("✓")]


def test_watch_takes_the_kind_like_the_others(fake: FakeCluster, hone: Hone) -> None:
    fake.add("finetunejobs", job())
    assert "✓ faq succeeded" in hone("watch", "ftj/faq")[1]
    assert "is for a FineTuneJob" in hone("watch", "hisvc/faq")[2]


@pytest.mark.parametrize(
    ("spec", "shown"), [({"uri": "s3://models/qwen/"}, "s3://models/qwen/"), ({}, "-"), ({"fineTuneJob": {}}, "-")]
)
def test_a_model_behind_a_uri_is_shown(spec: dict[str, Any], shown: str) -> None:
    assert views.describe_model({"spec": {"model": spec}}) == shown
