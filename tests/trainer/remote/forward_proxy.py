"""A small proxy on loopback: tunnels for HTTPS, and forwarded requests for HTTP.

It alone knows where the hosts of its table are, as the proxy of a company does: without it they can't be reached.
"""

import http.client
import select
import socket
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

_BLOCK_BYTES = 65536
_FORWARDED = ("GET", "HEAD", "PUT", "POST")


class ProxyHandler(BaseHTTPRequestHandler):
    """Forwards the requests that `proxy`, which a subclass sets, allows."""

    proxy: "ForwardProxy"
    protocol_version = "HTTP/1.1"

    def __getattr__(self, name: str) -> object:
        if name.removeprefix("do_") in _FORWARDED:
            return self.forward
        raise AttributeError(name)

    def do_CONNECT(self) -> None:
        host = self.path.partition(":")[0]
        if not self.is_allowed(host):
            return
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(("127.0.0.1", self.proxy.hosts[host])) as server:
            relay(self.connection, server)
        self.close_connection = True

    def forward(self) -> None:
        target = urlsplit(self.path)
        if not self.is_allowed(str(target.hostname)):
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.hosts[str(target.hostname)])
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        sent = {name: text for name, text in self.headers.items() if not name.lower().startswith("proxy-")}
        path = target.path + (f"?{target.query}" if target.query else "")
        connection.request(self.command, path, body or None, sent)
        answer = connection.getresponse()
        content = answer.read()
        self.send_response_only(answer.status)
        for name, text in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, text)
        if not answer.getheader("Content-Length"):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    def is_allowed(self, host: str) -> bool:
        self.proxy.asked.append(f"{self.command} {host}")
        credentials = self.proxy.login and f"Basic {b64encode(self.proxy.login.encode()).decode()}"
        if credentials and self.headers.get("Proxy-Authorization") != credentials:
            status = 407
        elif host not in self.proxy.hosts:
            status = 502
        else:
            return True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class ForwardProxy:
    """A proxy that sends hosts to ports of this machine, and may want a login. `asked`: requests, as METHOD HOST."""

    def __init__(self, hosts: dict[str, int], login: str | None = None) -> None:
        self.hosts, self.asked = hosts, []
        self.login = login
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (ProxyHandler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """End the proxy."""
        self._server.shutdown()
        self._server.server_close()


def relay(one: socket.socket, other: socket.socket) -> None:
    """Send what either socket receives to the other one, until one of them ends."""
    pairs = {one: other, other: one}
    while True:
        for source in select.select(list(pairs), [], [])[0]:
            block = source.recv(_BLOCK_BYTES)
            if not block:
                return
            pairs[source].sendall(block)
