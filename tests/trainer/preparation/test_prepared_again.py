"""Preparing after another spec gives the same as in an empty folder: rows, report, or refusal."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
# Each a change of the spec that rows, their report, their warnings or a refusal depend on.
CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"training": {"seed": 7}},
    "maxLength": {"training": {"maxLength": 12}},
    "truncationMode": {"training": {"maxLength": 12, "extra": {"truncationMode": "keep_end"}}},
    "packing": {"training": {"packing": True}},
    "packingStrategy": {"training": {"packing": True, "packingStrategy": "wrapped"}},
    "evalPacking": {"training": {"packing": True, "extra": {"evalPacking": False}}},
    "shuffleDataset": {"training": {"extra": {"shuffleDataset": True}}},
    "eosToken": {"training": {"eosToken": "<s>"}},
    "padToken": {"training": {"padToken": "no such token"}},
    "assistantOnlyLoss": {"training": {"assistantOnlyLoss": True}},
    "completionOnlyLoss": {"training": {"completionOnlyLoss": True}},
    "loggingSteps": {"training": {"loggingSteps": 1.5}},
    "lrSchedulerType": {"training": {"lrSchedulerType": "reduce_lr_on_plateau"}, "dataset": {"evalFraction": None}},
    "perDeviceTrainBatchSize": {"training": {"perDeviceTrainBatchSize": 4, "extra": {"dataloaderDropLast": True}}},
    "profile": {"training": {"profile": "none"}},
    "chatTemplate": {"dataset": {"chatTemplate": TEMPLATE.replace("<", "[").replace(">", "]")}},
    "format": {"dataset": {"format": "text"}},
    "columns": {"dataset": {"columns": {"messages": "other"}}},
    "maxSamples": {"dataset": {"maxSamples": 4}},
    "evalFraction": {"dataset": {"evalFraction": 0.5}},
    "file": {"dataset": {"claim": {"name": "data", "path": "b.jsonl"}}},
    "model": {"model": {"claim": {"name": "claim", "path": "wide"}}},
    "targetModules": {"lora": {"targetModules": ["nothing"]}},
    "method": {"method": "full", "lora": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for name, start in (("a", 0), ("b", 3)):
        rows = [
            {"messages": chat(f"answer {n} " * (1 + n % 4)), "other": chat(f"{n}")} for n in range(start, start + 8)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def chat(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "say"}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def prepare(job: Job, train: Train, claim: Path, data: Path) -> Callable[..., Any]:
    """Prepare a spec with changes: prepare(changes, output)."""

    def run(changes: dict[str, Any], output: Path) -> Any:
        dataset = {"claim": {"name": "data", "path": "a.jsonl"}, "chatTemplate": TEMPLATE, "evalFraction": 0.25}
        spec = {**changes, "dataset": dataset | changes.get("dataset", {})}
        return train(job(**spec), claims={"claim": claim, "data": data}, command="prepare", output=output)

    return run


@pytest.fixture(scope="module")
def before(prepare: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    first = prepare({}, tmp_path_factory.mktemp("before") / "out")
    assert first.code == 0, first.log
    return Path(first.output)


@pytest.mark.parametrize("field", CHANGES)
def test_rows_of_an_earlier_spec_are_not_used_for_another(
    prepare: Callable[..., Any], before: Path, tmp_path: Path, field: str
) -> None:
    fresh = prepare(CHANGES[field], tmp_path / "fresh")
    shutil.copytree(before, tmp_path / "again")
    again = prepare(CHANGES[field], tmp_path / "again")
    assert (again.code, again.message.get("reason")) == (fresh.code, fresh.message.get("reason")), again.log
    if fresh.code:
        assert again.message["message"] == fresh.message["message"].replace(str(fresh.output), str(again.output))
        return
    assert list(read(again.output)) == list(read(fresh.output))
    assert warnings(again) == warnings(fresh)


def read(output: Path) -> Iterator[Any]:
    """Read everything below prepared/ except the names of folders."""
    yield json.loads((output / "prepared/prepared.json").read_text())
    for name in ("train", "eval"):
        if (output / "prepared" / name).is_dir():
            yield from load_from_disk(str(output / "prepared" / name))


def warnings(result: Any) -> list[str]:
    return [line for line in result.log.splitlines() if "warning" in line]


@pytest.mark.parametrize(
    "spoiled", ["train", "eval", "train/state.json", "train/data-00000-of-00001.arrow", "prepared.json"]
)
@pytest.mark.parametrize("how", ["removed", "empty"])
def test_missing_parts_are_prepared_again(
    prepare: Callable[..., Any], before: Path, tmp_path: Path, spoiled: str, how: str
) -> None:
    output = tmp_path / "out"
    shutil.copytree(before, output)
    path = output / "prepared" / spoiled
    is_folder = path.is_dir()
    shutil.rmtree(path) if is_folder else path.unlink()
    if how == "empty":
        path.mkdir() if is_folder else path.touch()
    done = prepare({}, output)
    assert done.code == 0, done.log
    assert list(read(output)) == list(read(before))
