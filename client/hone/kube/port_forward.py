"""Open a local port whose connections go to a ready pod behind a Service, like `kubectl port-forward`."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import kubernetes.client
import kubernetes.stream

from hone.errors import ClientError
from hone.kube.cluster import TIMEOUT, Cluster, translate_errors


def find_ready_endpoint(cluster: Cluster, service: str) -> tuple[str, int]:
    """Return pod name and port of a ready endpoint. Raises ClientError when the Service has none."""
    discovery: Any = kubernetes.client.DiscoveryV1Api(cluster.api)
    with translate_errors(f"Service {service} in namespace {cluster.namespace}"):
        slices = discovery.list_namespaced_endpoint_slice(
            cluster.namespace, label_selector=f"kubernetes.io/service-name={service}", _request_timeout=TIMEOUT
        ).items
    for found in slices:
        for endpoint in found.endpoints or []:
            if endpoint.conditions.ready and endpoint.target_ref and found.ports:
                return endpoint.target_ref.name, found.ports[0].port
    raise ClientError(
        f"Service {service} in namespace {cluster.namespace} has no pod that is ready",
        f"Look at its pods: kubectl get pods -n {cluster.namespace} -l hone.dev/inferenceservice={service}",
    )


@contextmanager
def forward_port(cluster: Cluster, service: str) -> Iterator[str]:
    """Listen on a free port of 127.0.0.1 and yield `http://127.0.0.1:<port>`.

    Each connection goes to a pod that is ready at that moment, so a rollout costs one connection, not the listener.
    Raises ClientError when no pod is ready or this user is not allowed to forward ports.
    """
    opening = threading.Lock()

    def open_remote() -> socket.socket:
        pod, port = find_ready_endpoint(cluster, service)
        # The client replaces its own transport while it opens a forward, so only one may open at a time.
        with opening, translate_errors(f"port-forward to pod {pod}"):
            return _open_socket(cluster, pod, port)

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(ClientError), closing(open_remote()) as remote:
                _copy_both_ways(self.request, remote)

    open_remote().close()
    with _Listener(("127.0.0.1", 0), Connection) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.server_address[1]}"
        finally:
            listener.shutdown()


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


def _open_socket(cluster: Cluster, pod: str, port: int) -> socket.socket:
    core = kubernetes.client.CoreV1Api(cluster.api)
    method = core.connect_get_namespaced_pod_portforward
    opened: Any = kubernetes.stream.portforward(method, pod, cluster.namespace, ports=str(port))
    wrapped: socket.socket = opened.socket(port)
    return wrapped


def _copy_both_ways(one: socket.socket, other: socket.socket) -> None:
    back = threading.Thread(target=_copy_until_closed, args=(other, one), daemon=True)
    back.start()
    _copy_until_closed(one, other)
    back.join()


def _copy_until_closed(source: socket.socket, target: socket.socket) -> None:
    """Copy until one side ends, then end both."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
