"""A real OCI registry on this machine: CNCF's distribution, the program that Docker's image `registry` holds.

Input is a folder; output is a registry at `host`, a free port of 127.0.0.1. With `has_login` it requires a user and a
password, with `tokens` the tokens of a server that the test has started. `go.mod` in this folder pins the program,
which is built once into the user's cache. The tests of hone_trainer.remote use it.
"""

import hashlib
import json
import subprocess
import time
import urllib.request
from base64 import b64encode, urlsafe_b64encode
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import go_server
import yaml
from go_server import GoServer, build_tool
from run_isolation import find_free_port
from s3server.gateway import Authority

MODULE = Path(__file__).parent
LOGIN = {"username": "reader", "password": "opensesame"}
# The registry reads passwords as bcrypt only.
HTPASSWD = "reader:$2b$04$1Drp0GSurCU26h3ZIyxBaeBKqM5yDnwW.CmEJklA43miT1ssBT3aO\n"
SERVICE, ISSUER = "test registry", "test issuer"


def find_missing_program() -> str | None:
    """Return why this machine can't build and run the registry; None where it can."""
    return go_server.find_missing_program("the registry")


def build() -> Path:
    """Return the registry's program, built if the cache lacks it. Raises subprocess.CalledProcessError."""
    return build_tool(MODULE)


class RegistryServer(GoServer):
    """A registry on `folder`, over HTTPS with an authority. The other arguments: which credentials it requires."""

    def __init__(
        self,
        folder: Path,
        authority: Authority | None = None,
        *,
        has_login: bool = False,
        tokens: "TokenServer | None" = None,
    ) -> None:
        self.storage = folder / "storage"
        self.storage.mkdir(parents=True)
        host = f"127.0.0.1:{find_free_port()}"
        self.url = f"http{'s' if authority else ''}://{host}"
        http: dict[str, Any] = {"addr": host, "secret": "of the test"}
        if authority:
            http["tls"] = {"certificate": str(authority.server_certificate), "key": str(authority.server_key)}
        configuration: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": http,
        }
        if has_login:
            (folder / "htpasswd").write_text(HTPASSWD)
            configuration["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        if tokens:
            configuration["auth"] = {
                "token": {
                    "realm": tokens.url,
                    "service": SERVICE,
                    "issuer": ISSUER,
                    "rootcertbundle": str(tokens.authority.certificates),
                }
            }
        (folder / "configuration.yaml").write_text(yaml.safe_dump(configuration))
        # Spans are sent nowhere: the program looks for a collector otherwise.
        variables = {"OTEL_TRACES_EXPORTER": "none"}
        super().__init__(host, [build(), "serve", folder / "configuration.yaml"], variables, folder / "log")

    def count_requests(self, text: str) -> int:
        """Return how many requests so far have a text such as `PUT /v2/faq/manifests/` in their first line."""
        return sum(f'"{text}' in line for line in self._log.read_text().splitlines())

    def put_blob(self, repository: str, content: bytes) -> dict[str, Any]:
        """Write a blob as any client does, and return its descriptor without a media type."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        begin = urllib.request.Request(f"{self.url}/v2/{repository}/blobs/uploads/", method="POST")
        with urllib.request.urlopen(begin) as response:
            address = response.headers["Location"]
        headers = {"Content-Type": "application/octet-stream"}
        put = urllib.request.Request(f"{address}&digest={digest}", data=content, headers=headers, method="PUT")
        urllib.request.urlopen(put).close()
        return {"digest": digest, "size": len(content)}

    def put_manifest(self, repository: str, tag: str, manifest: dict[str, Any]) -> str:
        """Write a manifest as any client does, and return its digest."""
        content = json.dumps(manifest).encode()
        headers = {"Content-Type": manifest["mediaType"]}
        url = f"{self.url}/v2/{repository}/manifests/{tag}"
        with urllib.request.urlopen(urllib.request.Request(url, data=content, headers=headers, method="PUT")) as answer:
            return str(answer.headers["Docker-Content-Digest"])


@dataclass
class TokenServer:
    """A server that gives tokens for repositories to who has the login, and for pulls to all."""

    authority: Authority
    lifetime_seconds: int = 300

    def __post_init__(self) -> None:
        self.requests: list[tuple[str, bool]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                login = b64encode(":".join(LOGIN.values()).encode()).decode()
                sent = self.headers.get("Authorization")
                outer.requests.append((query["scope"][0], sent is not None))
                if sent not in (None, f"Basic {login}"):
                    self.send_response(401)
                    self.end_headers()
                    return
                _, name, actions = query["scope"][0].split(":")
                allowed = actions.split(",") if sent else []
                content = json.dumps({"token": outer.make_token(query["service"][0], name, allowed)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def make_token(self, service: str, name: str, actions: list[str]) -> str:
        """Return a signed token."""
        certificate = "".join(self.authority.server_certificate.read_text().splitlines()[1:-1])
        now = int(time.time())
        head = {"alg": "RS256", "typ": "JWT", "x5c": [certificate]}
        claims = {
            "iss": ISSUER,
            "sub": LOGIN["username"],
            "aud": service,
            "nbf": now - 60,
            "iat": now,
            "exp": now + self.lifetime_seconds,
            "access": [{"type": "repository", "name": name, "actions": actions}],
        }
        text = b".".join(_encode(json.dumps(part).encode()) for part in (head, claims))
        sign = ["openssl", "dgst", "-sha256", "-sign", str(self.authority.server_key)]
        signature = subprocess.run(sign, input=text, capture_output=True, check=True).stdout
        return f"{text.decode()}.{_encode(signature).decode()}"

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()


def _encode(content: bytes) -> bytes:
    return urlsafe_b64encode(content).rstrip(b"=")
