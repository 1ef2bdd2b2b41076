"""A job whose model and dataset are in a bucket, with the Secret in the manifest."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Store

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
