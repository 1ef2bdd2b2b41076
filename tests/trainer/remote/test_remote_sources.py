"""A job whose model and dataset are in a bucket, with the Secret in the manifest."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Store
from run_isolation import find_free_port

Job = Callable[..., dict[str, Any]]


@pytest.fixture
def bucket(claim: Path) -> Iterator[Store]:
    files = {f"models/tiny/{path.name}": path.read_bytes() for path in (claim / "tiny").iterdir()}
    files["models/tiny/pytorch_model.bin"] = b"another format of the same weights"
    server = Store(files | {"faq/text.jsonl": (claim / "text.jsonl").read_bytes(), "faq/README.md": b"rows"})
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_and_a_dataset_from_a_bucket_are_trained(bucket: Store, train: Any, job: Job, tmp_path: Path) -> None:
    common = {"endpoint": bucket.url, "secret": {"name": "reader"}}
    document = job(model={"uri": "s3://data/models/tiny", **common}, dataset={"uri": "s3://data/faq/", **common})
    secret = {
        "kind": "Secret",
        "metadata": {"name": "reader"},
        "stringData": {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "opensesame"},
    }
    done = train(document, secret, output=tmp_path / "out")
    assert done.code == 0, done.log
    assert done.manifest["baseModel"]["uri"] == "s3://data/models/tiny"
    assert not [name for _, name, _ in bucket.asked if name.endswith(".bin")]
    asked = len(bucket.asked)
    assert train(document, secret, output=tmp_path / "out").code == 0
    assert len(bucket.asked) == asked, "a complete artifact needs no store"
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"opensesame" not in path.read_bytes(), path


def test_how_far_a_download_is_can_be_read_while_preparing(
    bucket: Store, make_worker: Callable[..., Any], claim: Path, job: Job, tmp_path: Path
) -> None:
    port = find_free_port()
    reports: list[dict[str, Any]] = []

    def read_progress(number: int, name: str) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=60) as answer:
            reports.append(json.load(answer))

    bucket.spoil = read_progress
    document = job(dataset={"uri": "s3://data/faq/", "endpoint": bucket.url, "secret": {"name": "reader"}})
    secret = {
        "kind": "Secret",
        "metadata": {"name": "reader"},
        "stringData": {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "opensesame"},
    }
    worker = make_worker("reporting", {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"})
    arguments = ("--port", str(port))
    done = worker.run(document, secret, command="prepare", claims={"claim": claim}, arguments=arguments)
    assert done.code == 0, done.log
    assert {report["stage"] for report in reports} == {"Preparing"}
    assert reports[0]["activity"].startswith("downloading s3://data/faq/: 2 files, ")


def test_several_datasets_from_buckets_are_trained_without_the_store_once_prepared(
    bucket: Store, make_worker: Callable[..., Any], claim: Path, job: Job, tmp_path: Path
) -> None:
    bucket.files["pairs/pairs.jsonl"] = (claim / "pairs.jsonl").read_bytes()
    document = job()
    del document["spec"]["dataset"]
    document["spec"]["datasets"] = [
        {"uri": f"s3://data/{folder}/", "endpoint": bucket.url, "secret": {"name": folder}, "weight": 1}
        for folder in ("faq", "pairs")
    ]
    secrets = [
        {
            "kind": "Secret",
            "metadata": {"name": folder},
            "stringData": {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "opensesame"},
        }
        for folder in ("faq", "pairs")
    ]
    where = {"claims": {"claim": claim}, "output": tmp_path / "out"}
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    prepared = make_worker("preparing", home).run(document, *secrets, command="prepare", **where)
    assert prepared.code == 0, prepared.log
    asked = len(bucket.asked)
    done = make_worker("training", home | {"HONE_OFFLINE": "1"}).run(document, **where)
    assert done.code == 0, done.log
    assert len(bucket.asked) == asked

    wrong = [secrets[0], {**secrets[1], "stringData": {"AWS_ACCESS_KEY_ID": "reader"}}]
    refused = make_worker("refused", home).run(document, *wrong, command="prepare", claims={"claim": claim})
    assert "spec.datasets[1].uri is s3://data/pairs/, and its Secret has no" in refused.message["message"]
