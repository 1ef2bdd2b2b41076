"""A model and an adapter in an OCI registry: trained from it, and served from it in another namespace.

The registry is CNCF's distribution, in a pod, and requires a login.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kube import Cluster, Images, condition, pod
from ociserver.registry import HTPASSWD, LOGIN, build, find_missing_program
from server_pod import PROGRAM, run_server, secret
from training import ONE_THREAD, ROWS, SERVE_SECONDS, TRAIN_SECONDS, because, furnish, job, message

Object = dict[str, Any]
CONFIGURATION = """
version: 0.1
storage: {filesystem: {rootdirectory: /data/storage}}
http: {addr: ":5000"}
auth: {htpasswd: {realm: test, path: /tmp/htpasswd}}
"""
SERVE = f"""
printf '%s' "$HTPASSWD" > /tmp/htpasswd
printf '%s' "$CONFIGURATION" > /tmp/configuration.yaml
exec {PROGRAM} serve /tmp/configuration.yaml
"""
# Pushes the files of folders, and prints the digest.
PUSH = """
import json, pathlib, sys
from hone_trainer.remote.locations import Location
from hone_trainer.remote.oci_push import ArtifactPusher

uri, endpoint, secret, root, *parts = sys.argv[1:]
root = pathlib.Path(root)
paths = [path for part in parts or ["."] for path in (root / part).rglob("*") if path.is_file()]
paths += [root / "manifest.json"] if parts else []
files = {path.relative_to(root).as_posix(): path for path in paths}
location = Location("model", uri, endpoint=endpoint, secret=json.loads(secret))
print(ArtifactPusher(location, lambda text: None).push(files))
"""
# Runs in the engine's container, and prints its answer.
ASK = """
import json, sys, urllib.request
body = json.dumps({"model": sys.argv[1], "prompt": "red", "max_tokens": 4}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["text"])
"""
MODEL_REPOSITORY, ROWS_REPOSITORY, ADAPTER_REPOSITORY = "models/tiny", "data/words", "models/faq"


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with a registry that has a model and rows."""
    assert not (reason := find_missing_program()), reason
    with hone.fresh_namespace("registry") as namespace:
        furnish(hone, images, namespace)
        hone.create(secret("login", LOGIN), namespace=namespace)
        texts = {"HTPASSWD": HTPASSWD, "CONFIGURATION": CONFIGURATION}
        run_server(hone, images, namespace, "registry", 5000, build(), SERVE, texts)
        push(hone, images, namespace, MODEL_REPOSITORY, "/models/tiny", claim="models")
        rows = "mkdir /tmp/rows && printf '%s' \"$ROWS\" > /tmp/rows/train.jsonl"
        push(hone, images, namespace, ROWS_REPOSITORY, "/tmp/rows", first=rows)
        yield namespace
        hone.kubectl("delete", "inferenceservices", "--all", namespace=namespace)


def endpoint_of(lab: str) -> str:
    return f"http://registry.{lab}:5000"


def uri_of(lab: str, repository: str) -> str:
    return f"oci://registry.{lab}:5000/{repository}:v1"


def push(
    hone: Cluster,
    images: Images,
    namespace: str,
    repository: str,
    folder: str,
    *parts: str,
    claim: str | None = None,
    first: str = "true",
) -> str:
    """Push a folder, from a claim that is mounted at its first part, after a command; return the digest."""
    name = f"push-{repository.replace('/', '-')}"
    arguments = [uri_of(namespace, repository), endpoint_of(namespace), json.dumps(LOGIN), folder, *parts]
    command = ["sh", "-euc", f'{first}; exec python3 -c "$0" "$@"', PUSH, *arguments]
    claims = {claim: f"/{folder.split('/')[1]}"} if claim else None
    environment = [{"name": "ROWS", "value": ROWS}]
    pusher = pod(name, images.runtime, *command, claims=claims, env=environment)
    return hone.run_pod(pusher, namespace).split()[-1]


def source(lab: str, repository: str) -> Object:
    return {"uri": uri_of(lab, repository), "endpoint": endpoint_of(lab), "secret": {"name": "login"}}


def service_of(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"resources": {"gpus": 0, "sharedMemory": "64Mi"}, "pod": ONE_THREAD, **spec},
    }


def test_what_was_trained_from_a_registry_is_served_from_it_in_another_namespace(
    hone: Cluster, images: Images, lab: str
) -> None:
    made = job("faq", model=source(lab, MODEL_REPOSITORY), dataset=source(lab, ROWS_REPOSITORY))
    hone.create(made, namespace=lab)
    done = hone.wait(
        "finetunejob", "faq", condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=condition("Failed")
    )
    artifact = done["status"]["artifact"]
    push(hone, images, lab, ADAPTER_REPOSITORY, f"/output/{artifact['path']}", "adapter", claim=artifact["claim"])
    with hone.fresh_namespace("elsewhere") as other:
        hone.create(secret("login", LOGIN), namespace=other)
        adapter = source(lab, ADAPTER_REPOSITORY) | {"name": "faq", "digest": artifact["digest"]}
        hone.create(service_of("chat", model=source(lab, MODEL_REPOSITORY), adapters=[adapter]), namespace=other)
        served = hone.wait("inferenceservice", "chat", condition("Ready"), other, timeout=SERVE_SECONDS)
        [engine] = hone.list("pods", other, "hone.dev/inferenceservice=chat")
        assert '"/secrets/login"' not in json.dumps(engine["spec"]["containers"])
        models = {each["kind"]: each for each in served["status"]["models"]}
        assert models["adapter"]["digest"] == artifact["digest"]
        assert {kind: each["name"] for kind, each in models.items()} == {"base": "tiny", "adapter": "faq"}
        command = ["exec", engine["metadata"]["name"], "--container", "engine", "--", "python3", "-c", ASK]
        for model in ("tiny", "faq"):
            assert hone.kubectl(*command, model, namespace=other).strip()


def test_another_digest_is_explained(hone: Cluster, lab: str) -> None:
    model = source(lab, MODEL_REPOSITORY) | {"digest": f"sha256:{'0' * 64}"}
    hone.create(service_of("pinned", model=model), namespace=lab)
    found = hone.wait(
        "inferenceservice", "pinned", because("Progressing", "ArtifactCorrupt"), lab, timeout=SERVE_SECONDS
    )
    assert "spec.model.digest" in message(found, "Progressing")
