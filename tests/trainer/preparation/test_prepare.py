"""The stage before training: what it counts, what it writes, and when it is repeated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
LONG = " ".join(["the trainer reads the very manifest that the cluster takes"] * 4)


def prepared(result: Any) -> dict[str, Any]:
    return json.loads((result.output / "prepared/prepared.json").read_text())


@pytest.fixture
def prepare(train: Train, claim: Path, tmp_path: Path) -> Callable[..., Any]:
    """Prepare a job whose dataset is these rows: prepare(job(…), rows, output=…)."""

    def run(document: dict[str, Any], rows: list[Any], **where: Any) -> Any:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        document["spec"]["dataset"] |= {"claim": {"name": "data", "path": "rows.jsonl"}}
        return train(document, claims={"claim": claim, "data": tmp_path}, command="prepare", **where)

    return run


def test_the_report_counts_tokens_and_rows_that_are_not_trained_on(job: Job, prepare: Any) -> None:
    pairs = [
        {"prompt": "say:\n", "completion": "hello"},
        {"prompt": "say:\n", "completion": "hello"},
        {"prompt": "say:\n", "completion": LONG},
        {"prompt": LONG + "\n", "completion": "too late"},
    ]
    done = prepare(job(training={"maxLength": 24}), pairs)
    assert done.code == 0, done.log
    report = prepared(done)["dataset"]["train"]
    assert {name: report[name] for name in report if name.endswith("Rows") or name == "rows"} == {
        "rows": 4, "truncatedRows": 2, "emptyRows": 0, "droppedRows": 1, "duplicateRows": 1, "keptRows": 3,
    }  # fmt: skip
    kept = load_from_disk(str(done.output / "prepared/train"))["input_ids"]
    dropped = 24
    assert report["tokens"] - report["truncatedTokens"] == sum(map(len, kept)) + dropped
    assert report["lengths"]["max"] > max(map(len, kept)) == 24
    assert "1 of 4 rows to train on have no token to learn from within maxLength 24 and are left out" in done.log
    assert "2 of 4 rows to train on are longer than maxLength 24" in done.log
    assert "1 of 4 rows to train on repeat an earlier one" in done.log
    assert not (done.output / "manifest.json").exists()


def test_rows_to_evaluate_on_that_are_trained_on_are_counted(job: Job, prepare: Any) -> None:
    rows = [{"text": f"row {number}"} for number in [*range(8), *[1, 2, 3, 4] * 3]]
    done = prepare(job(dataset={"evalFraction": 0.4}), rows)
    assert done.code == 0, done.log
    train, held_out = (
        list(map(tuple, load_from_disk(str(done.output / "prepared" / part))["input_ids"]))
        for part in ("train", "eval")
    )
    shared = sum(row in train for row in held_out)
    assert 0 < shared < len(held_out) == 8
    assert f"{shared} of 8 rows to evaluate on are rows to train on as well" in done.log


def test_the_learned_text_is_shown(job: Job, prepare: Any) -> None:
    done = prepare(job(), [{"prompt": "say:\n", "completion": "hello"}])
    assert "say:\n⟦hello</s>⟧" in done.log
    generation = {"claim": {"name": "claim", "path": "generation"}}
    chat = job(model=generation, dataset={}, training={"assistantOnlyLoss": True})
    done = prepare(chat, [{"instruction": "hi", "output": "ho"}])
    assert "user: hi</s>assistant: ⟦ho</s>⟧" in done.log


def test_the_end_token_of_the_arguments_ends_texts_and_completions(job: Job, prepare: Any) -> None:
    done = prepare(job(training={"eosToken": "<s>"}), [{"prompt": "say:\n", "completion": "hello"}])
    assert "say:\n⟦hello<s>⟧" in done.log
    assert "⟦hello<s>⟧" in prepare(job(training={"eosToken": "<s>"}), [{"text": "hello"}]).log


def test_a_custom_template_is_saved_with_the_result(job: Job, train: Train) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    chat = {"claim": {"name": "claim", "path": "chat.jsonl"}, "chatTemplate": template}
    done = train(job(model={"claim": {"name": "claim", "path": "no-template"}}, dataset=chat))
    assert done.code == 0, done.log
    assert (done.output / "adapter/chat_template.jinja").read_text() == template


def test_a_run_uses_prepared_rows_and_gives_the_same_result(job: Job, train: Train) -> None:
    first = train(job(), command="prepare")
    stamp = (first.output / "prepared/prepared.json").stat().st_mtime_ns
    done = train(job(), output=first.output)
    assert done.code == 0, done.log
    assert (first.output / "prepared/prepared.json").stat().st_mtime_ns == stamp
    assert done.manifest["digest"] == train(job()).manifest["digest"]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"training": {"learningRate": 1e-3}}, False),
        ({"training": {"maxLength": 16}}, True),
        ({"model": {"claim": {"name": "claim", "path": "generation"}}}, True),
        ({"dataset": {"claim": {"name": "claim", "path": "chat.jsonl"}}}, True),
    ],
)
def test_the_preparation_is_repeated_when_its_inputs_change(job: Job, train: Train, change: Any, again: bool) -> None:
    first = train(job(), command="prepare")
    stamp = (first.output / "prepared/prepared.json").stat().st_mtime_ns
    second = train(job(**change), command="prepare", output=first.output)
    assert second.code == 0, second.log
    assert ((first.output / "prepared/prepared.json").stat().st_mtime_ns != stamp) == again


def test_a_preparation_that_fails_leaves_nothing_incomplete(job: Job, prepare: Any) -> None:
    failed = prepare(job(), [{"text": "one"}, {"text": 2}])
    assert (failed.code, failed.message["reason"]) == (65, "DatasetInvalid")
    assert not [path.name for path in failed.output.iterdir() if "prepared" in path.name]


def test_a_row_without_assistant_is_named(job: Job, prepare: Any) -> None:
    rows = [{"messages": [{"role": role, "content": "hi"}]} for role in ("assistant", "user")]
    document = job(
        model={"claim": {"name": "claim", "path": "generation"}}, training={"assistantOnlyLoss": True}, dataset={}
    )
    failed = prepare(document, rows)
    assert (failed.code, failed.message["reason"]) == (65, "DatasetInvalid"), failed.log
    assert "rows.jsonl, line 2 has no assistant message" in failed.message["message"]


def test_prompts_that_end_differently_before_a_completion_are_counted(job: Job, prepare: Any) -> None:
    done = prepare(job(), [{"prompt": "t", "completion": "he"}, {"prompt": "say:\n", "completion": "ho"}])
    assert "1 of 2 rows to train on have a prompt that ends differently" in done.log


def test_packing_that_splits_rows_loses_no_token(job: Job, prepare: Any) -> None:
    training = {"packing": True, "packingStrategy": "bfd_split", "maxLength": 24}
    done = prepare(job(training=training), [{"text": LONG}, {"text": "short"}])
    report = prepared(done)["dataset"]["train"]
    assert (report["truncatedTokens"], report["rows"]) == (0, 2)
    assert report["keptRows"] > 2
