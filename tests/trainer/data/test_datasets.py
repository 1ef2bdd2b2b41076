"""Formats, sources and limits of a dataset."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hone_api.finetunejobs.sources import DatasetSource
from hone_api.finetunejobs.spec import FineTuneJob
from hone_trainer.data import dataset
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.inputs.named_datasets import NamedDataset
from pyarrow import parquet

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]


@pytest.fixture
def load(job: Job, tmp_path: Path) -> Callable[..., dataset.LoadedDataset]:
    """Load spec.dataset from a claim that holds the given files."""

    def run(source: dict[str, Any], **files: Any) -> dataset.LoadedDataset:
        for name, content in files.items():
            path = tmp_path / "data" / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        inputs = JobInputs(FineTuneJob.model_validate(job()), {"data": tmp_path / "data"}, {}, {})
        parsed = DatasetSource.model_validate({"claim": {"name": "data", "path": source.pop("path", None)}, **source})
        found = dataset.locate_dataset(NamedDataset(parsed), inputs, pinned=None)
        return dataset.load_rows(found, seed=42, scratch=Path(tempfile.mkdtemp(dir=tmp_path)))

    return run


ROWS = [{"text": "one", "other": 1}, {"text": "two", "other": 2}]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("train.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        ("train.json", json.dumps(ROWS)),
        ("train.csv", 'other,text\n1,one\n2,"two"\n'),
        ("train.txt", "one\n\ntwo\n"),
        ("train.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}'),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(load: Any, path: str, content: Any) -> None:
    found = load({"path": path}, **{path.replace(".", "_"): content})
    assert list(found.train) == [{"text": "one"}, {"text": "two"}]
    assert found.format == "text"


def test_parquet_with_messages(load: Any, tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]]
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.table({"messages": messages, "id": [7]}), tmp_path / "data/train.parquet")
    found = load({"path": "train.parquet"})
    assert (found.format, found.conversational) == ("messages", True)
    assert found.train[0] == {"messages": messages[0]}


def test_columns_are_renamed_and_the_format_follows(load: Any) -> None:
    row = json.dumps({"question": "2+2?", "answer": "4", "text": "2+2=4"})
    renamed = {"columns": {"prompt": "question", "completion": "answer"}}
    found = load({"path": "a.jsonl", "format": "prompt-completion", **renamed}, a_jsonl=row)
    assert found.train[0] == {"prompt": "2+2?", "completion": "4"}
    assert load({"path": "a.jsonl", "format": "text"}).train[0] == {"text": "2+2=4"}


def test_sharegpt_rows_are_messages(load: Any) -> None:
    row = json.dumps({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]})
    found = load({"path": "a.jsonl"}, a_jsonl=row)
    assert found.train[0]["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def test_alpaca_rows_are_messages(load: Any) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "Add. 1 and 2: 3"},
        {"instruction": "Hello?", "input": "", "output": "Hi.", "text": "Hello? Hi."},
    ]
    found = load({"path": "a.jsonl"}, a_jsonl="".join(json.dumps(row) + "\n" for row in rows))
    assert found.format == "messages"
    assert found.train[:]["messages"] == [
        [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}],
        [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}],
    ]
    assert load({"path": "a.jsonl", "format": "text"}).train[1] == {"text": "Hello? Hi."}
    renamed = {"columns": {"instruction": "q", "output": "a", "system": "s"}, "path": "b.jsonl"}
    found = load(renamed, b_jsonl=json.dumps({"q": "Hello?", "a": "Hi.", "s": "Be kind."}))
    assert [message["role"] for message in found.train[0]["messages"]] == ["system", "user", "assistant"]


def test_max_samples_and_eval_fraction(load: Any) -> None:
    lines = "".join(f"row {number}\n" for number in range(100))
    found = load({"path": "a.txt", "maxSamples": 40, "evalFraction": 0.1}, a_txt=lines)
    again = load({"path": "a.txt", "maxSamples": 40, "evalFraction": 0.1})
    train, held_out = set(found.train["text"][:]), set(found.evaluation["text"][:])
    assert (len(train), len(held_out)) == (36, 4)
    assert train | held_out == {f"row {number}" for number in range(40)}
    assert again.evaluation["text"][:] == found.evaluation["text"][:]


def test_the_fingerprint_follows_content_and_shape(job: Job, tmp_path: Path) -> None:
    def fingerprint(text: str, **source: Any) -> str:
        (tmp_path / "a.txt").write_text(text)
        inputs = JobInputs(FineTuneJob.model_validate(job()), {"data": tmp_path}, {}, {})
        parsed = DatasetSource.model_validate({"claim": {"name": "data", "path": "a.txt"}, **source})
        return dataset.locate_dataset(NamedDataset(parsed), inputs, pinned=None).fingerprint

    first = fingerprint("one\ntwo\n")
    assert fingerprint("one\ntwo\n") == first
    others = [
        fingerprint("one\nthree\n"),
        fingerprint("one\ntwo\n", maxSamples=1),
        fingerprint("one\ntwo\n", evalFraction=0.5),
    ]
    assert len({first, *others}) == 4


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("path", ["chat.jsonl", "pairs.jsonl"])
def test_each_format_trains(job: Job, train: Train, method: str, path: str) -> None:
    done = train(job(method=method, dataset={"claim": {"name": "claim", "path": path}}))
    assert done.code == 0, done.log
    assert [line["step"] for line in done.metrics] == [1, 2, 3, 4]


def test_messages_in_prompt_and_completion_train(job: Job, train: Train, claim: Path, tmp_path: Path) -> None:
    turn = {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]}
    (tmp_path / "turns.jsonl").write_text(json.dumps(turn) + "\n")
    document = job(dataset={"claim": {"name": "data", "path": "turns.jsonl"}})
    done = train(document, claims={"claim": claim, "data": tmp_path})
    assert done.code == 0, done.log


def test_loss_on_the_assistant_only(job: Job, train: Train) -> None:
    chat = {"claim": {"name": "claim", "path": "chat.jsonl"}}
    model = {"claim": {"name": "claim", "path": "generation"}}
    everything = train(job(model=model, dataset=chat))
    assistant = train(job(model=model, dataset=chat, training={"assistantOnlyLoss": True}))
    assert assistant.code == 0, assistant.log
    assert assistant.metrics[0]["loss"] != everything.metrics[0]["loss"]


def test_a_config_map_next_to_the_job_and_in_a_folder(job: Job, train: Train, tmp_path: Path) -> None:
    document = job(dataset={"configMap": {"name": "faq", "key": "train.jsonl"}})
    text = '{"text": "one"}\n{"text": "two"}\n'
    beside = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "faq"}, "data": {"train.jsonl": text}}
    (tmp_path / "train.jsonl").write_text(text)
    inline = train(document, beside)
    mounted = train(document, config_maps={"faq": tmp_path})
    assert (inline.code, mounted.code) == (0, 0), inline.log
    assert inline.manifest["datasetFingerprint"] == mounted.manifest["datasetFingerprint"]
    assert inline.manifest["digest"] == mounted.manifest["digest"]


def test_packing_trains(job: Job, train: Train) -> None:
    done = train(job(training={"packing": True, "maxLength": 32, "perDeviceTrainBatchSize": 1}))
    assert done.code == 0, done.log
    assert done.metrics[0]["num_tokens"] > 16
