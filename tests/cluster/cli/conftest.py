"""A namespace that the tests of the command share, with a model, rows, and one finished job."""

import json
from collections.abc import Iterator

import pytest
from hone_command import TRAIN_SECONDS, Object, job
from kube import Cluster, Images, claim, condition
from tiny_model import put_model

ROW = {"messages": [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}]}


@pytest.fixture(scope="session")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with a tiny model on the claim `models` and a dataset in the ConfigMap `rows`."""
    with hone.fresh_namespace("cli") as namespace:
        data = {"train.jsonl": f"{json.dumps(ROW)}\n" * 8}
        rows = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rows"}, "data": data}
        hone.create(claim("models"), rows, namespace=namespace)
        put_model(hone, images, namespace)
        yield namespace


@pytest.fixture(scope="session")
def finished(hone: Cluster, lab: str) -> Object:
    """Return the finished job `done` of the namespace `lab`."""
    hone.create(job("done"), namespace=lab)
    failed = condition("Failed")
    return hone.wait("finetunejob", "done", condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=failed)
