"""An artifact that is pushed to an S3 bucket: the server is versitygw, in a pod."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kube import Cluster, Images, condition, pod
from object_store import KEYS, STORE, make_bucket, run_store
from s3server.gateway import BUCKET, SECRET
from server_pod import secret
from training import TRAIN_SECONDS, furnish, job, message, reasons

Object = dict[str, Any]
PUSH_SECONDS = 200
# Downloads a folder of the bucket, compares it with its manifest, and prints the digest.
VERIFY = """
import pathlib, sys
from hone_api.artifacts.manifest import read_manifest
from hone_api.artifacts.verification import verify
from minio import Minio
store = Minio("store:7070", sys.argv[1], sys.argv[2], secure=False, region="us-east-1")
root = pathlib.Path("/tmp/pushed")
for found in store.list_objects(sys.argv[3], sys.argv[4], recursive=True):
    store.fget_object(sys.argv[3], found.object_name, str(root / found.object_name.removeprefix(sys.argv[4])))
manifest = read_manifest(root)
verify(root, manifest)
print(manifest.digest)
"""


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with a store that has an empty bucket, and the Secret of a writer."""
    with hone.fresh_namespace("pushes") as namespace:
        furnish(hone, images, namespace)
        hone.create(secret("writer", SECRET), namespace=namespace)
        run_store(hone, images, namespace)
        make_bucket(hone, images, namespace, {})
        yield namespace


def to_bucket(folder: str, writer: str = "writer") -> Object:
    return {"uri": f"s3://{BUCKET}/{folder}", "endpoint": STORE, "secret": {"name": writer}}


def verify(hone: Cluster, images: Images, namespace: str, folder: str) -> str:
    """Return the digest of an artifact in the bucket, all of whose files are as its manifest says."""
    name = f"verify-{folder.strip('/').replace('/', '-')}"
    return hone.run_pod(pod(name, images.runtime, "python3", "-c", VERIFY, *KEYS, BUCKET, folder), namespace).strip()


def test_a_complete_artifact_is_pushed_by_a_job_of_its_own(hone: Cluster, images: Images, lab: str) -> None:
    hone.create(job("pushed", output={"storage": {"size": "1Gi"}, "push": [to_bucket("faq/")]}), namespace=lab)
    done = hone.wait("finetunejob", "pushed", condition("Pushed"), lab, timeout=TRAIN_SECONDS + PUSH_SECONDS)
    digest = done["status"]["artifact"]["digest"]
    assert done["status"]["stage"] == "Succeeded"
    assert done["status"]["pushes"] == [{"address": f"s3://{BUCKET}/faq/", "endpoint": STORE, "digest": digest}]
    assert verify(hone, images, lab, "faq/") == digest
    jobs = {each["metadata"]["name"]: json.dumps(each["spec"]) for each in hone.list("jobs", lab)}
    assert [name for name, spec in jobs.items() if '"writer"' in spec] == ["pushed-push"]
    # A repeated push finds everything there.
    hone.kubectl(
        "patch",
        "finetunejob",
        "pushed",
        "--type=json",
        "--patch",
        json.dumps([{"op": "add", "path": "/spec/output/push/-", "value": to_bucket("copy/")}]),
        namespace=lab,
    )
    both = hone.wait(
        "finetunejob",
        "pushed",
        lambda found: len(found["status"]["pushes"]) == 2 and condition("Pushed")(found),
        lab,
        timeout=PUSH_SECONDS,
    )
    assert [push["digest"] for push in both["status"]["pushes"]] == [digest, digest]
    assert verify(hone, images, lab, "copy/") == digest
    log = hone.kubectl("logs", "job/pushed-push", namespace=lab)
    assert f"s3://{BUCKET}/faq/ is complete" in log


def test_a_push_that_fails_costs_no_artifact_and_is_repeated(hone: Cluster, images: Images, lab: str) -> None:
    hone.create(secret("nobody", {**SECRET, "AWS_SECRET_ACCESS_KEY": "wrong"}), namespace=lab)
    output = {"storage": {"size": "1Gi"}, "push": [to_bucket("repeated/", "nobody")]}
    hone.create(job("repeated", output=output), namespace=lab)
    failed = hone.wait(
        "finetunejob",
        "repeated",
        lambda found: reasons(found).get("Pushed") == "StoreUnauthorized",
        lab,
        timeout=TRAIN_SECONDS + PUSH_SECONDS,
    )
    assert failed["status"]["stage"] == "Succeeded"
    assert reasons(failed)["Ready"] == "Succeeded"
    assert "spec.output.push" in message(failed, "Pushed")
    assert "wrong" not in json.dumps(failed["status"])
    hone.apply(secret("nobody", SECRET), namespace=lab)
    hone.kubectl("delete", "job", "repeated-push", namespace=lab)
    done = hone.wait("finetunejob", "repeated", condition("Pushed"), lab, timeout=PUSH_SECONDS)
    digest = done["status"]["artifact"]["digest"]
    assert done["status"]["pushes"] == [{"address": f"s3://{BUCKET}/repeated/", "endpoint": STORE, "digest": digest}]
    assert verify(hone, images, lab, "repeated/") == digest


def test_a_secret_that_is_missing_is_waited_for(hone: Cluster, images: Images, lab: str) -> None:
    output = {"storage": {"size": "1Gi"}, "push": [to_bucket("late/", "late")]}
    hone.create(job("late", output=output), namespace=lab)
    hone.wait(
        "finetunejob",
        "late",
        lambda found: "Pushed" in reasons(found) and 'secret "late" not found' in message(found, "Pushed"),
        lab,
        timeout=TRAIN_SECONDS + PUSH_SECONDS,
    )
    hone.create(secret("late", SECRET), namespace=lab)
    # The kubelet tries to mount the Secret again within two minutes.
    done = hone.wait("finetunejob", "late", condition("Pushed"), lab, timeout=2 * PUSH_SECONDS)
    assert verify(hone, images, lab, "late/") == done["status"]["artifact"]["digest"]
