"""A minimal Kubernetes client, so that the benchmark itself uses little of the machine."""

import json
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import urllib3

Object = dict[str, Any]
CREATORS = 8


# The API server makes a certificate of its own.
urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


class Refused(Exception):
    """The API server answered with an error."""


class Client:
    """Sends and receives JSON, to and from one API server, as the user with this token."""

    def __init__(self, url: str, token: str = "admin") -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pool = urllib3.PoolManager(maxsize=CREATORS + 2, cert_reqs="CERT_NONE", retries=False)

    def get(self, path: str) -> Object:
        return self._ask("GET", path)

    def create(self, path: str, body: Object) -> Object:
        return self._ask("POST", path, body)

    def apply(self, path: str, body: Object) -> Object:
        return self._ask("PATCH", f"{path}?fieldManager=benchmark&force=true", body, "application/apply-patch+yaml")

    def patch(self, path: str, body: Object) -> Object:
        return self._ask("PATCH", path, body, "application/merge-patch+json")

    def create_all(self, path: str, bodies: Iterable[Object]) -> None:
        with ThreadPoolExecutor(CREATORS) as pool:
            for _ in pool.map(lambda body: self.create(path, body), bodies):
                pass

    def watch(self, path: str, version: str) -> Iterator[Object]:
        """Yield events from this resourceVersion on, for as long as the server keeps the stream open."""
        query = f"?watch=1&resourceVersion={version}&timeoutSeconds=3600"
        answer = self._pool.request("GET", self._url + path + query, headers=self._headers, preload_content=False)
        rest = b""
        with suppress(urllib3.exceptions.ProtocolError):  # the server ends
            for chunk in answer.stream(1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from map(json.loads, lines)

    def _ask(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
        data = None if body is None else json.dumps(body)
        headers = {**self._headers, "Content-Type": kind}
        answer = self._pool.request(method, self._url + path, body=data, headers=headers, timeout=60)
        if answer.status >= 400:
            raise Refused(f"{method} {path}: {answer.data.decode(errors='replace')[:500]}")
        found: Object = json.loads(answer.data)
        return found


class Arrivals:
    """The times at which the objects of a collection first met a condition, by name."""

    def __init__(self, client: Client, path: str, arrived: Any = lambda _: True) -> None:
        self.at: dict[str, float] = {}
        self._news = threading.Condition()
        self._arrived = arrived
        version = client.get(f"{path}?limit=1")["metadata"]["resourceVersion"]
        threading.Thread(target=self._watch, args=(client, path, version), daemon=True).start()

    def wait(self, names: list[str], seconds: float) -> float:
        """Return when the last of them arrived. Names are the beginning of the objects' names, all of one length."""
        deadline = time.monotonic() + seconds
        with self._news:
            while missing := [name for name in names if name not in self.at]:
                if not self._news.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"{len(missing)} of {len(names)} did not arrive in {seconds} s: {missing[:3]}")
            return max(self.at[name] for name in names)

    def _watch(self, client: Client, path: str, version: str) -> None:
        for event in client.watch(path, version):
            found = event["object"]
            if not self._arrived(found):
                continue
            name = found["metadata"]["name"][:NAME]
            with self._news:
                self.at.setdefault(name, time.monotonic())
                self._news.notify_all()


NAME = len("single-00000")


def make_names(prefix: str, count: int) -> list[str]:
    """Return names of one length, so that children can be assigned to their objects."""
    return [f"{prefix[:6]:x<6}-{number:05d}" for number in range(count)]
