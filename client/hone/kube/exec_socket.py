"""Open the WebSocket of a command in a pod. `kubernetes.stream` does the same without any timeout."""

import importlib
import ssl
from collections.abc import Sequence
from typing import Any

import certifi
from kubernetes.client.exceptions import ApiException
from websocket import WebSocket, WebSocketBadStatusException

from hone.kube.cluster import TIMEOUT, Cluster

ws_client: Any = importlib.import_module("kubernetes.stream.ws_client")  # untyped
PROTOCOL = "v4.channel.k8s.io"


def open_exec(cluster: Cluster, pod: str, container: str, command: Sequence[str]) -> WebSocket:
    """Run a command without input in a container, and return the socket with its channels of output.

    Raises ApiException for an answer of the API server, WebSocketException and OSError for a broken connection.
    """
    api: Any = cluster.api
    pairs = [("container", container), ("stdin", "false"), ("stdout", "true"), ("stderr", "true"), ("tty", "false")]
    pairs += [("command", part) for part in command]
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}/exec"
    _, url, headers, *_ = api.param_serialize("GET", path, query_params=pairs, auth_settings=["BearerToken"])
    configuration = api.configuration
    sent = [f"{name}: {value}" for name, value in headers.items() if name.lower() == "authorization"]
    # No redirect is followed: the token is for this server.
    options: dict[str, Any] = {"header": sent, "subprotocols": [PROTOCOL], "redirect_limit": 0}
    if configuration.proxy or configuration.proxy_headers:
        ws_client.websocket_proxycare(options, configuration, url, headers)
    opened: Any = WebSocket(sslopt=_make_tls_options(configuration))
    try:
        opened.connect(ws_client.get_websocket_url(url), timeout=sum(TIMEOUT), **options)
    except WebSocketBadStatusException as error:
        found = ApiException(status=error.status_code, reason=f"the API server answers with status {error.status_code}")
        found.body = error.resp_body.decode(errors="replace") if error.resp_body else ""
        raise found from None
    socket: WebSocket = opened
    return socket


def _make_tls_options(configuration: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"cert_reqs": ssl.CERT_NONE}
    if configuration.verify_ssl:
        options = {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": configuration.ssl_ca_cert or certifi.where()}
        if configuration.assert_hostname is not None:
            options["check_hostname"] = configuration.assert_hostname
    given = (
        ("certfile", configuration.cert_file),
        ("keyfile", configuration.key_file),
        ("server_hostname", configuration.tls_server_name),
    )
    return options | {name: value for name, value in given if value}
