"""spec.datasets: several datasets in one job."""

import json
from collections.abc import Callable
from typing import Any

from datasets import load_from_disk

Train = Callable[..., Any]
Job = Callable[..., dict[str, Any]]


def several(job: Job, *entries: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Make a job with several datasets: each is a file on the claim, or the fields of an entry."""
    document = job(**spec)
    del document["spec"]["dataset"]
    document["spec"]["datasets"] = list(entries)
    return document


def on_claim(path: str, **fields: Any) -> dict[str, Any]:
    return {"claim": {"name": "claim", "path": path}, **fields}


def test_formats_are_mixed(train: Train, job: Job) -> None:
    result = train(
        several(job, on_claim("text.jsonl"), on_claim("chat.jsonl"), on_claim("pairs.jsonl")), command="prepare"
    )
    assert result.code == 0, result.log
    print(result.log)
    print(json.dumps(json.loads((result.output / "prepared/prepared.json").read_text())["dataset"], indent=1))
    rows = load_from_disk(str(result.output / "prepared/train"))
    assert len(rows) == 36
