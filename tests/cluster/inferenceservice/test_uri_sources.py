"""From a bucket and a registry to an answer in another namespace: what a job trained is served from where it pushed it.

The S3 server is versitygw and the registry CNCF's distribution, which requires a login; the hub is a stand-in. Each
runs in a pod.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hone import Client
from hone.kube.cluster import kubeconfig
from hub_writes import TOKEN
from kube import Cluster, Images, condition, pod
from object_store import STORE, make_bucket, run_store
from ociserver.registry import HTPASSWD, LOGIN, build, find_missing_program
from s3server.gateway import BUCKET, SECRET
from server_pod import PROGRAM, run_server, secret
from training import ONE_THREAD, ROWS, SERVE_SECONDS, TRAIN_SECONDS, because, furnish, job, message

Object = dict[str, Any]
PUSH_SECONDS = 200
HUB = "http://hub:8000"
# The stand-in for the hub of the trainer's tests.
SERVE_HUB = f"""
WritableHub(("", 8000), "{HUB}")
threading.Event().wait()
"""
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
from hone_trainer.push.oci_push import ArtifactPusher

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
MODEL_REPOSITORY, ADAPTER_REPOSITORY = "models/tiny", "models/faq"


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with a bucket that has rows, a registry that has a model, and a hub without repositories."""
    assert not (reason := find_missing_program()), reason
    with hone.fresh_namespace("registry") as namespace:
        furnish(hone, images, namespace)
        hone.create(
            secret("login", LOGIN), secret("bucket", SECRET), secret("hub", {"token": TOKEN}), namespace=namespace
        )
        run_store(hone, images, namespace)
        make_bucket(hone, images, namespace, {"rows/train.jsonl": ROWS})
        run_hub(hone, images, namespace)
        texts = {"HTPASSWD": HTPASSWD, "CONFIGURATION": CONFIGURATION}
        run_server(hone, images, namespace, "registry", 5000, build(), SERVE, texts)
        push(hone, images, namespace, MODEL_REPOSITORY, "/models/tiny", claim="models")
        yield namespace
        hone.kubectl("delete", "inferenceservices", "--all", namespace=namespace)


def run_hub(hone: Cluster, images: Images, namespace: str) -> None:
    """Run the stand-in for the hub behind HUB, and wait until it listens."""
    standin = (Path(__file__).parents[2] / "trainer/hub_writes.py").read_text() + SERVE_HUB
    spec = {"selector": {"app": "hub"}, "ports": [{"port": 8000}]}
    hone.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hub"}, "spec": spec}, namespace=namespace)
    probe = {"readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1}}
    hone.create(pod("hub", images.operator, "python3", "-c", standin, **probe), namespace=namespace)
    hone.wait("pod", "hub", condition("Ready"), namespace)


@pytest.fixture(scope="module")
def pushed(hone: Cluster, lab: str) -> Object:
    """Return the status of a FineTuneJob whose artifact has been pushed to the bucket, the registry and the hub."""
    made = job(
        "faq",
        model=source(lab, MODEL_REPOSITORY),
        dataset=in_bucket("rows/train.jsonl"),
        output={
            "storage": {"size": "1Gi"},
            "push": [
                in_bucket("faq/"),
                {"oci": uri_of(lab, ADAPTER_REPOSITORY).removeprefix("oci://"), **login_of(lab)},
                {"hub": {"repo": "me/faq", "tokenSecret": {"name": "hub"}}},
            ],
        },
        # The stand-in has no Xet protocol.
        pod={"env": [{"name": "HF_ENDPOINT", "value": HUB}, {"name": "HF_HUB_DISABLE_XET", "value": "1"}]},
    )
    hone.create(made, namespace=lab)
    done = hone.wait(
        "finetunejob", "faq", condition("Pushed"), lab, timeout=TRAIN_SECONDS + PUSH_SECONDS, unless=condition("Failed")
    )
    found: Object = done["status"]
    return found


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
    claim: str,
) -> str:
    """Push a folder, from a claim that is mounted at its first part; return the digest."""
    name = f"push-{repository.replace('/', '-')}"
    arguments = [uri_of(namespace, repository), endpoint_of(namespace), json.dumps(LOGIN), folder, *parts]
    command = ["python3", "-c", PUSH, *arguments]
    pusher = pod(name, images.runtime, *command, claims={claim: f"/{folder.split('/')[1]}"})
    return hone.run_pod(pusher, namespace).split()[-1]


def login_of(lab: str) -> Object:
    return {"endpoint": endpoint_of(lab), "secret": {"name": "login"}}


def in_bucket(key: str) -> Object:
    return {"uri": f"s3://{BUCKET}/{key}", "endpoint": STORE, "secret": {"name": "bucket"}}


def source(lab: str, repository: str) -> Object:
    return {"uri": uri_of(lab, repository), **login_of(lab)}


def service_of(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"resources": {"gpus": 0, "sharedMemory": "64Mi"}, "pod": ONE_THREAD, **spec},
    }


def test_what_was_trained_from_a_bucket_is_pushed_and_served_in_another_namespace(
    hone: Cluster, lab: str, pushed: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, digest = uri_of(lab, ADAPTER_REPOSITORY), pushed["artifact"]["digest"]
    assert [(push["address"], push["digest"]) for push in pushed["pushes"]] == [
        (f"s3://{BUCKET}/faq/", digest),
        (repository, digest),
        ("hf://me/faq", digest),
    ]
    pinned = f"{repository.removesuffix(':v1')}@{pushed['pushes'][1]['revision']}"
    adapter = {"name": "faq", "uri": pinned, "digest": digest, **login_of(lab)}
    # The library reads KUBECONFIG when it is imported.
    monkeypatch.setattr(kubeconfig.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", hone.env["KUBECONFIG"])
    with hone.fresh_namespace("elsewhere") as other:
        hone.create(secret("login", LOGIN), namespace=other)
        hone.create(service_of("chat", model=source(lab, MODEL_REPOSITORY), adapters=[adapter]), namespace=other)
        served = hone.wait("inferenceservice", "chat", condition("Ready"), other, timeout=SERVE_SECONDS)
        [engine] = hone.list("pods", other, "hone.dev/inferenceservice=chat")
        assert '"/secrets/login"' not in json.dumps(engine["spec"]["containers"])
        models = {each["kind"]: each for each in served["status"]["models"]}
        assert models["adapter"]["digest"] == digest
        assert {kind: each["name"] for kind, each in models.items()} == {"base": "tiny", "adapter": "faq"}
        with Client(namespace=other).service("chat") as service:
            for model in ("tiny", "faq"):
                assert service.chat("red", model)


def test_adapters_in_a_registry_are_loaded_into_running_engines(
    hone: Cluster, images: Images, lab: str, pushed: Object
) -> None:
    artifact, second = pushed["artifact"], "adapters/second"
    push(hone, images, lab, second, f"/output/{artifact['path']}", "adapter", claim=artifact["claim"])
    one = source(lab, ADAPTER_REPOSITORY) | {"name": "one", "digest": artifact["digest"]}
    two = source(lab, second) | {"name": "two"}
    hone.create(service_of("hot", model=source(lab, MODEL_REPOSITORY), adapters=[one]), namespace=lab)
    hone.wait("inferenceservice", "hot", condition("Ready"), lab, timeout=SERVE_SECONDS)
    [engine] = hone.list("pods", lab, "hone.dev/inferenceservice=hot")
    containers = [*engine["spec"]["initContainers"], *engine["spec"]["containers"]]
    with_secret = [each["name"] for each in containers if "/secrets/login" in json.dumps(each["volumeMounts"])]
    assert with_secret == ["download-uris", "download-adapters"]

    change_adapters(hone, lab, [one, two])
    hone.wait("inferenceservice", "hot", has_loaded("one", "two"), lab, timeout=SERVE_SECONDS)
    for model in ("tiny", "one", "two"):
        assert ask(hone, lab, engine, model)

    missing = source(lab, "adapters/nowhere") | {"name": "three"}
    change_adapters(hone, lab, [one, two, missing])
    failed = hone.wait("inferenceservice", "hot", because("Progressing", "ModelNotFound"), lab, timeout=SERVE_SECONDS)
    assert "spec.adapters[2].uri is " in message(failed, "Progressing")
    for model in ("one", "two"):
        assert ask(hone, lab, engine, model)

    change_adapters(hone, lab, [two])
    hone.wait("inferenceservice", "hot", has_loaded("two"), lab, timeout=SERVE_SECONDS)
    [same] = hone.list("pods", lab, "hone.dev/inferenceservice=hot")
    assert same["metadata"]["uid"] == engine["metadata"]["uid"]
    statuses = [*same["status"]["initContainerStatuses"], *same["status"]["containerStatuses"]]
    assert {each["name"]: each["restartCount"] for each in statuses if each["restartCount"]} == {}


def change_adapters(hone: Cluster, lab: str, adapters: list[Object]) -> None:
    patch = json.dumps({"spec": {"adapters": adapters}})
    hone.kubectl("patch", "inferenceservice", "hot", "--type", "merge", "--patch", patch, namespace=lab)


def has_loaded(*names: str) -> Callable[[Object], bool]:
    """Return a check that a service is complete and has loaded these adapters in its engine, and no others."""

    def check(service: Object) -> bool:
        models = service.get("status", {}).get("models", [])
        loaded = [each["name"] for each in models if each["kind"] == "adapter" and each.get("loaded") == "1/1"]
        return loaded == list(names) and because("Progressing", "Complete")(service)

    return check


def ask(hone: Cluster, namespace: str, engine: Object, model: str) -> str:
    """Return the answer of a model in the engine's pod."""
    command = ["exec", engine["metadata"]["name"], "--container", "engine", "--", "python3", "-c", ASK, model]
    return hone.kubectl(*command, namespace=namespace).strip()


def test_another_digest_is_explained(hone: Cluster, lab: str) -> None:
    model = source(lab, MODEL_REPOSITORY) | {"digest": f"sha256:{'0' * 64}"}
    hone.create(service_of("pinned", model=model), namespace=lab)
    found = hone.wait(
        "inferenceservice", "pinned", because("Progressing", "ArtifactCorrupt"), lab, timeout=SERVE_SECONDS
    )
    assert "spec.model.digest" in message(found, "Progressing")
