"""A gated model from a private hub: downloaded once into a shared claim, with a token that no engine has."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube import Cluster, Images, claim, condition, pod
from tiny_model import put_model
from training import ONE_THREAD, SERVE_SECONDS, because, message

Object = dict[str, Any]
TOKEN = "hf_private_token"
WEIGHTS = "model.safetensors"
EXPLAIN_SECONDS = 240
HUB, NO_HUB = "http://hub:8000", "http://127.0.0.1:9"
# The stand-in for the hub of the trainer's tests, which logs the downloads of its files.
SERVE = """
class Logged(Answer):
    def log_message(self, *args):
        sys.stdout.write(f"{self.command} {self.path}\\n")  # in one piece: threads write at the same time
        sys.stdout.flush()

hub = Hub(Path("/models/tiny"), sys.argv[1], ("", 8000))
hub.RequestHandlerClass = Logged
hub.serve_forever()
"""
# Runs in the engine's container: print its variables, and its answer.
LOOK = """
import json, pathlib, urllib.request
variables = pathlib.Path("/proc/1/environ").read_text().split("\\0")
body = json.dumps({"model": "me/tiny", "prompt": "red", "max_tokens": 4}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", body, {"Content-Type": "application/json"})
print(json.dumps([variables, json.load(urllib.request.urlopen(request, timeout=60))]))
"""


def secret(name: str, token: str) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"token": token}}


def service(name: str, *, hub: str = HUB, token: str = "hub", **spec: Any) -> Object:
    """Return a service of the gated model on the private hub, with Hone's own engine."""
    env = [*ONE_THREAD["env"], {"name": "HF_ENDPOINT", "value": hub}]
    resources = {"gpus": 0, "sharedMemory": "64Mi"}
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"name": "me/tiny"},
            "tokenSecret": {"name": token},
            "resources": resources,
            "pod": {"env": env},
            **spec,
        },
    }


def cached_in(name: str) -> Object:
    """Return the field for a cache on a claim."""
    return {"cache": {"claim": {"name": name}}}


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with the private hub, the Secret of its token, and claims for caches."""
    with hone.fresh_namespace("service-cache") as namespace:
        hone.create(
            claim("models"),
            claim("shared-cache"),
            claim("later-cache"),
            secret("hub", TOKEN),
            secret("wrong", "hf_another"),
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "hub"},
                "spec": {"selector": {"app": "hub"}, "ports": [{"port": 8000}]},
            },
            namespace=namespace,
        )
        tests = Path(__file__).parents[2]
        put_model(hone, images, namespace)
        standin = f"import sys\n{(tests / 'trainer/hub_server.py').read_text()}\n{SERVE}"
        probe = {"readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1}}
        server = pod("hub", images.runtime, "python3", "-c", standin, TOKEN, claims={"models": "/models"}, **probe)
        hone.create(server, namespace=namespace)
        hone.wait("pod", "hub", condition("Ready"), namespace)
        yield namespace
        hone.kubectl("delete", "inferenceservices", "--all", namespace=namespace)


def downloads(hone: Cluster, namespace: str) -> list[str]:
    """Return the requests for the weights' content that the hub has answered."""
    log = hone.kubectl("logs", "hub", namespace=namespace)
    return [line for line in log.splitlines() if line.startswith("GET ") and line.endswith(WEIGHTS)]


def engine_of(hone: Cluster, namespace: str, name: str) -> str:
    """Return the name of a pod of the service, once all its engines serve the present spec."""

    def is_served(found: Object) -> bool:
        observed = found.get("status", {}).get("observedGeneration")
        return condition("Ready")(found) and observed == found["metadata"]["generation"]

    hone.wait("inferenceservice", name, is_served, namespace, timeout=SERVE_SECONDS)
    pods = hone.list("pods", namespace, f"hone.dev/inferenceservice={name}")
    return next(str(one["metadata"]["name"]) for one in pods if not one["metadata"].get("deletionTimestamp"))


def look(hone: Cluster, namespace: str, engine: str) -> tuple[list[str], str]:
    """Return the variables of an engine's process, and the text that it answers."""
    command = ("exec", engine, "--container", "engine", "--", "python3", "-c", LOOK)
    variables, answer = json.loads(hone.kubectl(*command, namespace=namespace))
    assert answer["model"] == "me/tiny"
    return variables, answer["choices"][0]["text"]


def test_a_gated_model_is_downloaded_once_and_the_engine_has_no_token(hone: Cluster, lab: str) -> None:
    before = len(downloads(hone, lab))
    hone.create(service("first", **cached_in("shared-cache")), namespace=lab)
    variables, text = look(hone, lab, engine_of(hone, lab, "first"))
    assert text
    assert not [each for each in variables if TOKEN in each or each.startswith("HF_TOKEN=")]
    assert "HF_HUB_OFFLINE=1" in variables
    assert len(downloads(hone, lab)) == before + 1
    hone.create(service("second", replicas=2, **cached_in("shared-cache")), namespace=lab)
    engine_of(hone, lab, "second")
    found = hone.get("inferenceservice", "second", lab)
    assert found
    assert found["status"]["readyReplicas"] == 2
    assert [model["name"] for model in found["status"]["models"]] == ["me/tiny"]
    assert len(downloads(hone, lab)) == before + 1


def test_without_a_claim_each_pod_downloads_and_the_engine_has_no_token(hone: Cluster, lab: str) -> None:
    before = len(downloads(hone, lab))
    hone.create(service("alone"), namespace=lab)
    variables, text = look(hone, lab, engine_of(hone, lab, "alone"))
    assert text
    assert not [each for each in variables if TOKEN in each]
    assert len(downloads(hone, lab)) == before + 1


def test_a_cached_model_starts_without_the_hub(hone: Cluster, lab: str) -> None:
    hone.create(service("later", **cached_in("later-cache")), namespace=lab)
    engine_of(hone, lab, "later")
    before = len(downloads(hone, lab))
    hone.apply(service("later", hub=NO_HUB, **cached_in("later-cache")), namespace=lab)
    engine = engine_of(hone, lab, "later")
    assert look(hone, lab, engine)[1]
    log = hone.kubectl("logs", engine, "--container", "download", namespace=lab)
    assert "is taken from the cache: the hub can't be reached" in log
    assert len(downloads(hone, lab)) == before


@pytest.mark.parametrize(
    ("name", "token", "hub", "reason", "words"),
    [
        ("refused", "wrong", HUB, "HubUnauthorized", ("spec.model.name is me/tiny", "spec.tokenSecret")),
        ("nobody", "nobody", HUB, "PodNotStarted", ('secret "nobody" not found', "Create Secret nobody")),
        ("unreachable", "hub", NO_HUB, "HubUnreachable", (f"the hub {NO_HUB} can't be reached",)),
    ],
)
def test_a_download_that_fails_is_explained(
    hone: Cluster, lab: str, name: str, token: str, hub: str, reason: str, words: tuple[str, ...]
) -> None:
    hone.create(service(name, hub=hub, token=token), namespace=lab)
    found = hone.wait("inferenceservice", name, because("Progressing", reason), lab, timeout=EXPLAIN_SECONDS)
    for part in words:
        assert part in message(found, "Progressing")
    assert "hf_another" not in json.dumps(found)
