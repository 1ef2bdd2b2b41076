"""Malformed, huge, deeply nested or constantly changed objects do not stop the work on others.

The CRDs here accept everything, so that objects that the real schema refuses reach the operator.
"""

import json
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import CRDS, ApiServer, api_server, operator
from garbage import fuzz, schema
from hone_operator.objects import bounded_json
from until import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

Object = dict[str, Any]
KINDS = {"FineTuneJob": "finetunejobs", "InferenceService": "inferenceservices"}
# Malformed objects of each kind.
MALFORMED = 150
# Levels of nesting. The API server accepts 10,000.
DEEP = 9_900
# Bytes. etcd accepts 1.5 MiB.
HUGE = 1_400_000
# Bytes. The API server accepts 256 KiB.
ANNOTATIONS = 250_000
# Within it the operator starts and makes a Job, also on a slow machine.
SOON_SECONDS = 60
GOOD_SPEC = {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}, "resources": {"gpus": 0}}


@dataclass
class Raw:
    """Raw requests, since no client library sends such objects."""

    server: ApiServer

    def __call__(
        self, method: str, path: str, body: object = None, *, data: bytes = b"", merge: bool = False
    ) -> Object:
        data = data or (json.dumps(body).encode() if body is not None else b"")
        kind = "application/merge-patch+json" if merge else "application/json"
        headers = {"Authorization": "Bearer admin", "Content-Type": kind}
        request = urllib.request.Request(self.server.url + path, data or None, headers, method=method)
        with urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=30) as answer:
            found: Object = bounded_json.load_bounded_json(answer.read())
            return found

    def create(self, kind: str, name: str, spec: Any, annotations: Object | None = None) -> None:
        metadata = {"name": name, "annotations": annotations or {}}
        body = {"apiVersion": "hone.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
        self("POST", collection(kind), body)

    def accepted(self, kind: str) -> dict[str, Object]:
        """Return the conditions Accepted, by the names of the objects."""
        conditions = {
            found["metadata"]["name"]: found.get("status", {}).get("conditions", [])
            for found in self("GET", collection(kind))["items"]
        }
        return {name: each for name, all_ in conditions.items() for each in all_ if each["type"] == "Accepted"}

    def has_job(self, name: str) -> bool:
        try:
            return bool(self("GET", f"/apis/batch/v1/namespaces/default/jobs/{name}-train"))
        except urllib.error.HTTPError:
            return False


def collection(kind: str) -> str:
    return f"/apis/hone.dev/v1alpha1/namespaces/default/{KINDS[kind]}"


@pytest.fixture(scope="module")
def raw(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raw]:
    with api_server(tmp_path_factory.mktemp("hostile")) as server:
        found = Raw(server)
        for file in sorted(CRDS.glob("*.yaml")):
            crd = yaml.safe_load(file.read_text())
            version = crd["spec"]["versions"][0]
            version["schema"]["openAPIV3Schema"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            version["subresources"] = {"status": {}}
            found("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        for kind in KINDS:
            wait_until(lambda kind=kind: served(found, kind))  # type: ignore[misc]
        yield found


def served(raw: Raw, kind: str) -> bool:
    try:
        return bool(raw("GET", collection(kind)))
    except urllib.error.HTTPError:
        return False


@pytest.fixture
def log(raw: Raw) -> Iterator[Path]:
    """Yield the log of an operator that runs until the test ends, and check that it had no unexpected error."""
    file = raw.server.folder / f"operator-{time.monotonic()}.log"
    with operator(raw.server.kubeconfig, log=file) as process:
        yield file
        assert process.poll() is None
    assert "Traceback" not in file.read_text(), file.read_text()[-3000:]


def test_malformed_objects_are_named_and_delay_nothing(raw: Raw, log: Path) -> None:
    for kind in KINDS:
        random_ = random.Random(f"arrives {kind}")
        spec_schema = schema(kind)
        for number in range(MALFORMED):
            raw.create(kind, f"garbage-{number}", fuzz(random_, kind, spec_schema)["spec"])
    raw.create("FineTuneJob", "good", GOOD_SPEC)
    wait_until(lambda: raw.has_job("good"), SOON_SECONDS)
    for kind in KINDS:
        wait_until(lambda kind=kind: len(raw.accepted(kind)) >= MALFORMED)  # type: ignore[misc]
        reasons = [found["reason"] for found in raw.accepted(kind).values()]
        assert set(reasons) == {"InvalidSpec", "Accepted"}
        assert reasons.count("InvalidSpec") > MALFORMED / 2


def test_huge_and_endless_objects_delay_nothing(raw: Raw, log: Path) -> None:
    spec = json.dumps({**GOOD_SPEC, "training": {"extra": {"optimArgs": "@"}}})
    spec = spec.replace('"@"', '{"a":' * DEEP + "1" + "}" * DEEP)
    body = f'{{"apiVersion":"hone.dev/v1alpha1","kind":"FineTuneJob","metadata":{{"name":"deep"}},"spec":{spec}}}'
    raw("POST", collection("FineTuneJob"), data=body.encode())
    dataset = {"name": "example/data", "chatTemplate": "x" * HUGE}
    raw.create("FineTuneJob", "huge", {**GOOD_SPEC, "dataset": dataset})
    raw.create("FineTuneJob", "annotated", GOOD_SPEC, {"x": "y" * ANNOTATIONS})
    raw.create("FineTuneJob", "neighbour", GOOD_SPEC)
    wait_until(lambda: raw.has_job("neighbour"), SOON_SECONDS)
    wait_until(lambda: raw.has_job("annotated"))
    for name in ("huge", "deep"):
        wait_until(lambda name=name: raw.accepted("FineTuneJob").get(name, {}).get("reason") == "InvalidSpec")  # type: ignore[misc]


def test_an_operator_that_starts_among_them_works(raw: Raw, log: Path) -> None:
    raw.create("FineTuneJob", "later", GOOD_SPEC)
    wait_until(lambda: raw.has_job("later"), SOON_SECONDS)


def test_an_object_that_is_changed_all_the_time_starves_no_other(raw: Raw, log: Path) -> None:
    stop = threading.Event()
    changes = [0]

    def change() -> None:
        while not stop.is_set():
            patch = {"metadata": {"labels": {"kueue.x-k8s.io/number": str(changes[0])}}}
            try:
                raw("PATCH", f"{collection('FineTuneJob')}/good", patch, merge=True)
            except urllib.error.HTTPError as error:
                if error.code != 409:  # the API server gave up between the writes of the others
                    raise
            changes[0] += 1

    threads = [threading.Thread(target=change) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: changes[0] > 50)
        before = changes[0]
        for number in range(20):
            raw.create("FineTuneJob", f"calm-{number}", GOOD_SPEC)
        wait_until(lambda: all(raw.has_job(f"calm-{number}") for number in range(20)))
        assert changes[0] - before > 20
    finally:
        stop.set()
        for thread in threads:
            thread.join()
