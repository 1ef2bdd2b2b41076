"""A model and a dataset in an S3 bucket, up to an answer: the server is versitygw, in a pod."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from held_training import hold, release
from hone_trainer.remote.download import JOURNALS
from kube import Cluster, Images, condition
from object_store import STORE, make_bucket, run_store
from s3server.gateway import BUCKET, SECRET
from server_pod import secret
from training import ONE_THREAD, ROWS, SERVE_SECONDS, TRAIN_SECONDS, furnish, job, message

Object = dict[str, Any]
# Runs in the engine's container, and prints its answer.
ASK = """
import json, sys, urllib.request
body = json.dumps({"model": sys.argv[1], "prompt": "red", "max_tokens": 4}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["text"])
"""


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with a store whose bucket has a model and rows, and the Secrets of a reader and of nobody."""
    with hone.fresh_namespace("stores") as namespace:
        furnish(hone, images, namespace)
        hone.create(
            secret("reader", SECRET),
            secret("nobody", {**SECRET, "AWS_SECRET_ACCESS_KEY": "wrong"}),
            namespace=namespace,
        )
        run_store(hone, images, namespace)
        make_bucket(hone, images, namespace, {"rows/train.jsonl": ROWS}, models="models")
        yield namespace
        hone.kubectl("delete", "inferenceservices", "--all", namespace=namespace)


def make_bucket_source(key: str, reader: str = "reader") -> Object:
    return {"uri": f"s3://{BUCKET}/{key}", "endpoint": STORE, "secret": {"name": reader}}


def test_a_model_and_rows_of_a_bucket_are_trained_and_served(hone: Cluster, lab: str) -> None:
    made = job("bucket", model=make_bucket_source("tiny/"), dataset=make_bucket_source("rows/train.jsonl"))
    hone.create(*hold(made, folder=JOURNALS), namespace=lab)
    downloading = f"prepares: downloading s3://{BUCKET}/tiny"
    hone.wait(
        "finetunejob",
        "bucket",
        lambda found: downloading in json.dumps(found.get("status")),
        lab,
        timeout=TRAIN_SECONDS,
        unless=condition("Failed"),
    )
    [preparing] = hone.list("pods", lab, "hone.dev/finetunejob=bucket")
    release(hone, lab, preparing["metadata"]["name"])
    hone.wait("finetunejob", "bucket", condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    jobs = {each["metadata"]["name"]: json.dumps(each["spec"]) for each in hone.list("jobs", lab)}
    prepare, train = jobs["bucket-prepare"], jobs["bucket-train"]
    assert '"reader"' in prepare
    assert '"reader"' not in train
    service = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "chat"},
        "spec": {
            "model": {"fineTuneJob": {"name": "bucket"}},
            "resources": {"gpus": 0, "sharedMemory": "64Mi"},
            "pod": ONE_THREAD,
        },
    }
    hone.create(service, namespace=lab)
    served = hone.wait("inferenceservice", "chat", condition("Ready"), lab, timeout=SERVE_SECONDS)
    [engine] = hone.list("pods", lab, "hone.dev/inferenceservice=chat")
    assert '"reader"' not in json.dumps(engine["spec"])
    models = {each["kind"]: each["name"] for each in served["status"]["models"]}
    assert models == {"base": "tiny", "adapter": "bucket"}
    command = ["exec", engine["metadata"]["name"], "--container", "engine", "--", "python3", "-c", ASK]
    for model in models.values():
        assert hone.kubectl(*command, model, namespace=lab).strip()


def test_wrong_keys_are_explained(hone: Cluster, lab: str) -> None:
    made = job("refused", dataset=make_bucket_source("rows/train.jsonl", "nobody"))
    hone.create(made, namespace=lab)
    failed = hone.wait("finetunejob", "refused", condition("Failed"), lab, timeout=TRAIN_SECONDS)
    explained = message(failed, "Failed")
    assert "StoreUnauthorized" in json.dumps(failed["status"])
    assert "spec.dataset.secret" in explained
    assert "wrong" not in explained
