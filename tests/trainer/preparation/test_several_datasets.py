"""spec.datasets: each dataset is read in its own way, named in messages, and mixed in a fixed order."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, interleave_datasets, load_from_disk

Train = Callable[..., Any]
Job = Callable[..., dict[str, Any]]
Prepare = Callable[..., Any]

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"


def entry(path: str, **fields: Any) -> dict[str, Any]:
    """Make an entry of spec.datasets with a file on the claim `data`."""
    return {"claim": {"name": "data", "path": path}, **fields}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Make a folder with three files of different columns."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows: dict[str, list[Any]] = {
        "text.jsonl": [{"text": f"text {number}"} for number in range(12)],
        "chat.jsonl": [{"messages": chat(f"answer {number}")} for number in range(5)],
        "pairs.jsonl": [{"question": f"what is {number}?\n", "answer": f"it is {number}"} for number in range(4)],
        "other.jsonl": [{"text": f"another text {number}"} for number in range(6)],
    }
    for name, content in rows.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def chat(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "say"}, {"role": "assistant", "content": answer}]


PAIRS = entry("pairs.jsonl", format="prompt-completion", columns={"prompt": "question", "completion": "answer"})


@pytest.fixture
def prepare(job: Job, train: Train, claim: Path, data: Path, tmp_path: Path) -> Prepare:
    """Prepare datasets, or a single one for a dict: prepare(datasets, name of the output, **spec)."""

    def run(datasets: Any, output: str = "out", **spec: Any) -> Any:
        document = job(**spec)
        del document["spec"]["dataset"]
        document["spec"]["datasets" if isinstance(datasets, list) else "dataset"] = datasets
        claims = {"claim": claim, "data": data}
        return train(document, claims=claims, command="prepare", output=tmp_path / output)

    return run


def rows_of(result: Any, split: str = "train") -> list[list[int]]:
    assert result.code == 0, result.log
    found: list[list[int]] = load_from_disk(str(result.output / "prepared" / split))["input_ids"]
    return found


def report_of(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result.output / "prepared/prepared.json").read_text())["dataset"]
    return found


def files_of(result: Any) -> dict[str, bytes]:
    """Return all files of the rows, without prepared.json, which records the report."""
    folder = result.output / "prepared"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "prepared.json"
    }


@pytest.mark.parametrize("turn", [1, -1])
def test_datasets_follow_each_other_each_in_its_own_format(prepare: Prepare, turn: int) -> None:
    entries = [entry("text.jsonl"), entry("chat.jsonl", maxSamples=3), PAIRS][::turn]
    alone = [prepare(one, f"alone-{number}") for number, one in enumerate(entries)]
    mixed = prepare(entries)
    assert rows_of(mixed) == [row for one in alone for row in rows_of(one)]
    labels = [load_from_disk(str(one.output / "prepared/train"))["labels"][:] for one in (*alone, mixed)]
    assert labels[-1] == [row for one in labels[:-1] for row in one]
    assert [row[0] == -100 for row in labels[-1]] == ([False] * 15 + [True] * 4)[::turn], "only prompts are not learned"

    found = report_of(mixed)
    assert found["format"] == ", ".join(["text", "messages", "prompt-completion"][::turn])
    assert [one["format"] for one in found["datasets"]] == found["format"].split(", ")
    assert [one["train"] for one in found["datasets"]] == [report_of(one)["train"] for one in alone]
    assert [one["usedRows"] for one in found["datasets"]] == [12, 3, 4][::turn]
    assert sum(one["usedTokens"] for one in found["datasets"]) == found["train"]["tokens"]
    assert sum(one["share"] for one in found["datasets"]) == pytest.approx(1)
    assert "dataset 2 (data/chat.jsonl): dataset of 1 file: chat.jsonl" in mixed.log


@pytest.mark.parametrize("field", ["assistantOnlyLoss", "completionOnlyLoss"])
def test_a_loss_that_one_of_the_formats_lacks_is_refused(prepare: Prepare, field: str) -> None:
    entries = [{"assistantOnlyLoss": entry("chat.jsonl"), "completionOnlyLoss": PAIRS}[field], entry("text.jsonl")]
    spec: dict[str, Any] = {"training": {field: True}}
    if field == "assistantOnlyLoss":
        spec["model"] = {"claim": {"name": "claim", "path": "generation"}}
    found = prepare(entries, **spec)
    assert found.message["reason"] == "InvalidSpec"
    assert found.message["message"].startswith(
        f"dataset 2 (data/text.jsonl): spec.training.{field} is true, and the rows"
    )


def test_one_entry_is_the_single_dataset(prepare: Prepare) -> None:
    single, listed = prepare(PAIRS | {"evalFraction": 0.25}, "single"), prepare([PAIRS | {"evalFraction": 0.25}])
    assert rows_of(single)
    assert files_of(listed) == files_of(single)
    one, other = (json.loads((found.output / "prepared/prepared.json").read_text()) for found in (single, listed))
    assert one == other
    assert files_of(prepare([PAIRS | {"evalFraction": 0.25, "weight": 2}], "weighted")) == files_of(single)


@pytest.mark.parametrize(("weights", "seed"), [((1, 1), 42), ((0.9, 0.1), 3), ((1, 5), 42)])
def test_weights_interleave_as_the_library_does(prepare: Prepare, weights: tuple[float, float], seed: int) -> None:
    names = ("text.jsonl", "other.jsonl")
    # With a fingerprint: on Python 3.12 the library can compute none of a new table.
    tables = [pa.table({"row": rows_of(prepare(entry(name), name))}) for name in names]
    parts = [Dataset(table, fingerprint=str(number)) for number, table in enumerate(tables)]
    total = sum(weights)
    expected = interleave_datasets(parts, probabilities=[weight / total for weight in weights], seed=seed)["row"]
    entries = [entry(name, weight=weight) for name, weight in zip(names, weights, strict=True)]
    mixed = prepare(entries, training={"seed": seed})
    assert rows_of(mixed) == list(expected)

    found = report_of(mixed)["datasets"]
    assert [one["weight"] for one in found] == list(weights)
    assert sum(one["usedRows"] for one in found) == len(expected)
    unused = [(one["train"]["rows"] - one["usedRows"], one["train"]["rows"]) for one in found]
    assert min(count for count, _ in unused) == 0
    for number, (count, rows) in enumerate(unused, start=1):
        text = f"{count} of {rows} rows to train on of dataset {number} (data/{names[number - 1]}) are left out"
        assert (text in mixed.log) == bool(count)


def test_rows_to_evaluate_on_are_those_of_each_dataset(prepare: Prepare) -> None:
    entries = [entry("text.jsonl", evalFraction=0.25), entry("chat.jsonl"), entry("other.jsonl", evalFraction=0.5)]
    mixed = prepare(entries)
    alone = [prepare(one, f"alone-{number}") for number, one in enumerate(entries) if "evalFraction" in one]
    assert rows_of(mixed, "eval") == [row for one in alone for row in rows_of(one, "eval")]
    assert [(one["evaluation"] or {}).get("rows") for one in report_of(mixed)["datasets"]] == [3, None, 3]
    assert report_of(mixed)["evaluation"]["rows"] == 6


def test_rows_of_one_dataset_that_another_one_is_evaluated_on_are_reported(prepare: Prepare, data: Path) -> None:
    shutil.copy(data / "text.jsonl", data / "copy.jsonl")
    log = prepare([entry("text.jsonl", evalFraction=0.25), entry("copy.jsonl")]).log
    assert "3 of 3 rows to evaluate on are rows to train on as well" in log
    assert "(first: dataset 1 (data/text.jsonl), text.jsonl, line " in log


def test_a_broken_row_is_named_with_its_dataset(prepare: Prepare, data: Path) -> None:
    with (data / "other.jsonl").open("a") as file:
        file.write('{"text": \n')
    broken = prepare([entry("text.jsonl"), entry("other.jsonl")])
    assert (broken.code, broken.message["reason"]) == (65, "DatasetInvalid")
    assert "dataset 2 (data/other.jsonl), other.jsonl, line 7" in broken.message["message"]


@pytest.mark.parametrize(
    ("second", "reason", "words"),
    [
        (entry("nothing.jsonl"), "DatasetNotFound", "spec.datasets[1].claim.path is 'nothing.jsonl'"),
        (
            entry("text.jsonl", columns={"text": "body"}),
            "DatasetColumnMissing",
            "spec.datasets[1].columns.text is body",
        ),
        (entry("text.jsonl", format="messages"), "DatasetColumnMissing", "spec.datasets[1].format is messages"),
        (entry("text.jsonl", evalFraction=0.99), "DatasetEmpty", "spec.datasets[1].evalFraction is 0.99"),
        (entry("chat.jsonl", chatTemplate="{% for %}"), "InvalidSpec", "spec.datasets[1].chatTemplate can't be read"),
        (
            entry("chat.jsonl", chatTemplate="{{ raise_exception('no') }}"),
            "DatasetInvalid",
            "refuses dataset 2 (data/chat.jsonl), chat.jsonl, line 1: no. Correct the row, or give another template in "
            "spec.datasets[1].chatTemplate.",
        ),
    ],
)
def test_a_mistake_is_named_with_its_field(prepare: Prepare, second: dict[str, Any], reason: str, words: str) -> None:
    found = prepare([entry("other.jsonl"), second])
    assert found.message["reason"] == reason
    assert words in found.message["message"]
    assert "spec.dataset." not in found.message["message"]


def test_a_dataset_that_would_be_cut_away_is_refused(prepare: Prepare, data: Path) -> None:
    (data / "long.jsonl").write_text(json.dumps({"prompt": "long " * 60, "completion": "x"}) + "\n")
    found = prepare([entry("text.jsonl"), entry("long.jsonl")], training={"maxLength": 16})
    assert found.message["reason"] == "AllRowsTruncated"
    assert found.message["message"].startswith("dataset 2 (data/long.jsonl): spec.training.maxLength is 16")


def test_warnings_name_the_dataset(prepare: Prepare, data: Path) -> None:
    (data / "long.jsonl").write_text('{"text": "a"}\n' + json.dumps({"text": "long " * 60}) + "\n")
    found = prepare([entry("text.jsonl"), entry("long.jsonl")], training={"maxLength": 16})
    assert "warning: dataset 2 (data/long.jsonl): 1 of 2 rows to train on are longer than maxLength 16" in found.log
    assert "dataset 1 (data/text.jsonl): 1" not in found.log


def test_the_template_of_one_entry_is_that_of_all(prepare: Prepare) -> None:
    entries = [entry("chat.jsonl"), entry("chat.jsonl", chatTemplate=TEMPLATE)]
    rows = rows_of(prepare(entries))
    assert rows[:5] == rows[5:]
    assert rows[:5] == rows_of(prepare(entry("chat.jsonl", chatTemplate=TEMPLATE), "single"))
    assert rows[:5] != rows_of(prepare(entry("chat.jsonl"), "plain"))


@pytest.mark.parametrize("change", ["content", "weight", "order", "format"])
def test_rows_are_prepared_again_when_any_dataset_changes(prepare: Prepare, data: Path, change: str) -> None:
    entries = [entry("text.jsonl", weight=1), entry("other.jsonl", weight=1)]
    first = json.loads((prepare(entries).output / "prepared/prepared.json").read_text())["datasetFingerprint"]
    unchanged = json.loads((prepare(entries).output / "prepared/prepared.json").read_text())["datasetFingerprint"]
    if change == "content":
        (data / "other.jsonl").write_text('{"text": "new"}\n')
    elif change == "weight":
        entries[1]["weight"] = 2
    elif change == "order":
        entries.reverse()
    else:
        entries[1]["format"] = "text"
    again = json.loads((prepare(entries).output / "prepared/prepared.json").read_text())["datasetFingerprint"]
    assert first == unchanged
    assert again != first


def test_claims_config_maps_and_inline_config_maps_go_together(
    job: Job, train: Train, claim: Path, data: Path, tmp_path: Path
) -> None:
    document = job()
    del document["spec"]["dataset"]
    document["spec"]["datasets"] = [
        entry("text.jsonl"),
        {"configMap": {"name": "mounted", "key": "chat.jsonl"}},
        {"configMap": {"name": "inline", "key": "rows.jsonl"}},
    ]
    inline = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "inline"},
        "data": {"rows.jsonl": '{"text": "inline"}\n'},
    }
    claims = {"claim": claim, "data": data}
    done = train(document, inline, claims=claims, config_maps={"mounted": data}, command="prepare")
    assert len(rows_of(done)) == 12 + 5 + 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "set exactly one of dataset (one dataset) and datasets (several)"),
        ({"dataset": entry("a"), "datasets": [entry("a")]}, "set exactly one of dataset (one dataset) and datasets"),
        ({"datasets": [entry("a", weight=1), entry("b")]}, "weight belongs to all of datasets or to none"),
    ],
)
def test_contradictions_are_refused_without_a_cluster_as_well(
    job: Job, train: Train, fields: dict[str, Any], words: str
) -> None:
    document = job()
    del document["spec"]["dataset"]
    document["spec"] |= fields
    found = train(document, command="prepare")
    assert (found.code, found.message["reason"]) == (64, "InvalidSpec")
    assert words in found.message["message"]
