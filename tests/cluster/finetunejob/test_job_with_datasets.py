"""A FineTuneJob with several datasets, each from another place."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kube import SYSTEM, Cluster, Images, condition, pod
from training import ROWS, TRAIN_SECONDS, furnish, job, message

Object = dict[str, Any]
MORE_ROWS = "".join(json.dumps({"body": f"{word} is a word of the night."}) + "\n" for word in "black white".split())
WRITE = "import pathlib, sys; pathlib.Path('/models/rows.jsonl').write_text(sys.argv[1])"


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    with hone.fresh_namespace("datasets") as namespace:
        furnish(hone, images, namespace)
        more = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "more"},
            "data": {"rows.jsonl": MORE_ROWS},
        }
        hone.create(more, namespace=namespace)
        hone.run_pod(
            pod("write", images.runtime, "python3", "-c", WRITE, ROWS, claims={"models": "/models"}), namespace
        )
        yield namespace


def make_job_with_datasets(name: str, *entries: Object, **spec: Any) -> Object:
    made = job(name, **spec)
    del made["spec"]["dataset"]
    made["spec"]["datasets"] = list(entries)
    return made


def test_a_job_trains_on_datasets_from_config_maps_and_a_claim(hone: Cluster, lab: str) -> None:
    entries = [
        {"configMap": {"name": "words", "key": "train.jsonl"}, "weight": 1},
        {"configMap": {"name": "more", "key": "rows.jsonl"}, "columns": {"text": "body"}, "weight": 1},
        {"claim": {"name": "models", "path": "rows.jsonl"}, "evalFraction": 0.25, "weight": 1},
    ]
    resources = {"gpus": 1, "sharedMemory": "64Mi"}
    hone.create(make_job_with_datasets("several", *entries, resources=resources), namespace=lab)
    done = hone.wait(
        "finetunejob", "several", condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=condition("Failed")
    )
    assert message(done, "Prepared").startswith("3 datasets of text rows, ")
    image = hone.list("pods", SYSTEM, "app.kubernetes.io/component=operator")[0]["spec"]["containers"][0]["image"]
    show = f"print(open('/output/{lab}/several/report/report.json').read())"
    reader = pod("read-report", image, "python3", "-c", show, claims={"several": "/output"})
    report = json.loads(hone.run_pod(reader, lab))
    found = report["dataset"]["datasets"]
    assert [one["name"] for one in found] == ["words/train.jsonl", "more/rows.jsonl", "models/rows.jsonl"]
    assert [one["train"]["rows"] for one in found] == [4, 2, 3]
    assert [(one.get("evaluation") or {}).get("rows") for one in found] == [None, None, 1]
    assert sum(one["usedRows"] for one in found) == report["dataset"]["train"]["rows"]


def test_datasets_cannot_change_and_exclude_a_single_one(hone: Cluster, lab: str) -> None:
    words = {"configMap": {"name": "words", "key": "train.jsonl"}}
    hone.create(make_job_with_datasets("fixed", words, suspend=True), namespace=lab)
    for spec, refusal in (
        ({"datasets": [words, words]}, "datasets can't change after creation"),
        ({"dataset": words}, "set exactly one of dataset .one dataset. and datasets"),
        ({"dataset": words, "datasets": None}, "dataset can't change after creation"),
    ):
        change = json.dumps({"spec": spec})
        with pytest.raises(AssertionError, match=refusal):
            hone.kubectl("patch", "finetunejob", "fixed", "--type=merge", "--patch", change, namespace=lab)


def test_a_mistake_in_one_dataset_is_named_in_the_status(hone: Cluster, lab: str) -> None:
    entries = [
        {"configMap": {"name": name, "key": key}} for name, key in (("words", "train.jsonl"), ("more", "rows.jsonl"))
    ]
    hone.create(make_job_with_datasets("mistaken", *entries), namespace=lab)
    failed = hone.wait("finetunejob", "mistaken", condition("Failed"), lab, timeout=TRAIN_SECONDS)
    assert "dataset 2 (more/rows.jsonl)" in message(failed, "Failed")
    assert "spec.datasets[1].columns" in message(failed, "Failed")
