"""Every failure has a name, an exit code, and a sentence that names field and value."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_api.reasons import DISK_FULL, OUT_OF_MEMORY
from hone_trainer.runtime.environment import limit_devices
from hone_trainer.runtime.errors import UnclassifiedError, classify_error
from safetensors.torch import load_file, save_file

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]


def of(path: str, **more: Any) -> dict[str, Any]:
    return {"claim": {"name": "claim", "path": path}, **more}


REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "no such model": ({"model": of("nowhere")}, 66, "ModelNotFound", "spec.model.claim.path is 'nowhere'"),
    "no such claim": (
        {"model": {"claim": {"name": "other"}}}, 64, "InvalidSpec", "spec.model.claim.name is other, and no folder",
    ),
    "leaving the claim": ({"dataset": of("a/../../etc")}, 64, "InvalidSpec", "a/../../etc"),
    "no such file": ({"dataset": of("nowhere.jsonl")}, 66, "DatasetNotFound", "'nowhere.jsonl'"),
    "no such config map": (
        {"dataset": {"configMap": {"name": "faq", "key": "a.txt"}}}, 66, "DatasetNotFound", "configMap.name is faq",
    ),
    "unknown ending": ({"dataset": of("tiny/tokenizer_config.jinja")}, 66, "DatasetNotFound", "nothing is there"),
    "not a dataset": ({"dataset": of("tiny/model.safetensors")}, 65, "DatasetInvalid", "none of .jsonl"),
    "split of a file": ({"dataset": of("text.jsonl", split="test")}, 64, "InvalidSpec", "spec.dataset.split is test"),
    "renamed to nothing": (
        {"dataset": of("text.jsonl", columns={"text": "body"})},
        65, "DatasetColumnMissing", "spec.dataset.columns.text is body, and the dataset has the columns text",
    ),
    "another format": (
        {"dataset": of("text.jsonl", format="messages")}, 65, "DatasetColumnMissing", "needs messages",
    ),
    "all held out": (
        {"dataset": of("text.jsonl", maxSamples=1, evalFraction=0.5)}, 65, "DatasetEmpty", "evalFraction is 0.5",
    ),
    "no chat template": (
        {"model": of("no-template"), "dataset": of("chat.jsonl")}, 65, "ChatTemplateMissing", "no chat template",
    ),
    "prompts too long": (
        {"dataset": of("pairs.jsonl"), "training": {"maxLength": 2}}, 65, "AllRowsTruncated", "maxLength is 2",
    ),
    "completion only": (
        {"training": {"completionOnlyLoss": True}}, 64, "InvalidSpec", "spec.training.completionOnlyLoss is true",
    ),
    "assistant only of text": (
        {"training": {"assistantOnlyLoss": True}}, 64, "InvalidSpec", "spec.training.assistantOnlyLoss is true",
    ),
    "assistant only unmarked": (
        {"dataset": of("chat.jsonl"), "training": {"assistantOnlyLoss": True}},
        64, "InvalidSpec", "no {% generation %} markers",
    ),
    "template with an error": (
        {"dataset": of("chat.jsonl", chatTemplate="{% for m in messages %}{{ m.role }}")},
        64, "InvalidSpec", "spec.dataset.chatTemplate can't be read, line 1",
    ),
    "unknown token": ({"training": {"eosToken": "<end>"}}, 64, "InvalidSpec", "spec.training.eosToken is '<end>'"),
    "unknown optimizer": ({"training": {"optim": "magic"}}, 64, "InvalidSpec", "magic"),
    "unknown modules": (
        {"lora": {"targetModules": ["elbow"]}}, 64, "InvalidSpec", "spec.lora.targetModules[0] is 'elbow'",
    ),
    "output head": ({"lora": {"targetModules": ["lm_head"]}}, 64, "InvalidSpec", "spec.lora.targetModules"),
    "diverging": (
        {"method": "full", "training": {"adamEpsilon": 0, "optim": "adamw_torch"}},
        68, "NonFiniteLoss", "The loss is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_named(job: Job, train: Train, name: str) -> None:
    spec, code, reason, words = REFUSED[name]
    failed = train(job(**spec))
    assert (failed.code, failed.message["reason"]) == (code, reason), failed.log
    assert words in failed.message["message"]
    assert failed.message["outcome"] == "Failed"
    assert "Traceback" not in failed.log
    assert f"error: {reason}" in failed.log
    assert not (failed.output / "manifest.json").exists()


BAD_ROWS: dict[str, tuple[str, str, str]] = {
    "broken JSON": ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl, line 2 is not JSON"),
    "not an object": ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl, line 2 holds [1]"),
    "a number": ("a.jsonl", '{"text": "a"}\n\n{"text": 7}\n', "a.jsonl, line 3, column text holds 7 where a string"),
    "null": ("a.jsonl", '{"text": null}\n', "a.jsonl, line 1, column text holds None"),
    "a column less": ("a.jsonl", '{"text": "a"}\n{"body": "b"}\n', "a.jsonl, line 2 has no column text"),
    "not UTF-8": ("a.txt", "gr\xfc\xdfe\n", "a.txt, line 1, column 3 is not UTF-8"),
    "ragged CSV": ("a.csv", "text\na\nb,c\n", "a.csv, line 3 has 2 fields"),
    "not a list": ("a.json", '{"text": "a"}', "a.json holds"),
    "not Parquet": ("a.parquet", "text", "a.parquet is not Parquet"),
    "message without role": ("a.jsonl", '{"messages": [{"content": "a"}]}\n', "line 1, column messages, message 1"),
    "no messages": ("a.jsonl", '{"messages": []}\n', "line 1, column messages holds []"),
    "tool calls": (
        "a.jsonl",
        '{"messages": [{"role": "assistant", "content": "", "tool_calls": "f()"}]}\n',
        "message 1 has the tool_calls",
    ),
    "an unknown speaker": (
        "a.jsonl",
        '{"conversations": [{"from": "narrator", "value": "once"}]}\n',
        "message 1 is from 'narrator', which is none of human",
    ),
    "Alpaca without output": ("a.jsonl", '{"instruction": "a", "output": null}\n', "line 1, column output holds None"),
    "mixed": (
        "a.jsonl",
        '{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}',
        "line 1 has text in",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named(job: Job, train: Train, claim: Path, tmp_path: Path, name: str) -> None:
    path, content, words = BAD_ROWS[name]
    (tmp_path / path).write_bytes(content.encode("latin-1"))
    failed = train(job(dataset={"claim": {"name": "data", "path": path}}), claims={"claim": claim, "data": tmp_path})
    assert (failed.code, failed.message["reason"]) == (65, "DatasetInvalid"), failed.log
    assert words in failed.message["message"]


def test_an_empty_file_is_named(job: Job, train: Train, claim: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    failed = train(
        job(dataset={"claim": {"name": "data", "path": "a.jsonl"}}), claims={"claim": claim, "data": tmp_path}
    )
    assert (failed.code, failed.message["reason"]) == (65, "DatasetEmpty")


def test_the_row_that_a_chat_template_refuses_is_named(job: Job, train: Train, claim: Path, tmp_path: Path) -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('Start with the user') }}{% endif %}"
    rows = [[{"role": role, "content": "hi"}] for role in ("user", "assistant")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    model = tmp_path / "model"
    model.mkdir()
    for file in (claim / "tiny").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "chat_template.jinja").write_text(strict + "{{ messages[0].content }}")
    document = job(
        model={"claim": {"name": "data", "path": "model"}}, dataset={"claim": {"name": "data", "path": "a.jsonl"}}
    )
    failed = train(document, claims={"data": tmp_path})
    assert (failed.code, failed.message["reason"]) == (65, "DatasetInvalid"), failed.log
    assert "refuses a.jsonl, line 2: Start with the user" in failed.message["message"]


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_an_incomplete_model_is_named(job: Job, train: Train, claim: Path, tmp_path: Path, missing: str) -> None:
    for file in (claim / "tiny").iterdir():
        if file.name != missing:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    failed = train(job(model={"claim": {"name": "broken"}}), claims={"claim": claim, "broken": tmp_path})
    assert (failed.code, failed.message["reason"]) == (66, "ModelInvalid"), failed.log


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_model_that_lacks_a_weight_is_named(job: Job, train: Train, claim: Path, tmp_path: Path, method: str) -> None:
    for file in (claim / "tiny").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    failed = train(job(model={"claim": {"name": "broken"}}, method=method), claims={"claim": claim, "broken": tmp_path})
    assert (failed.code, failed.message["reason"]) == (66, "ModelInvalid"), failed.log
    assert "lack 1 weights, such as model.layers.1.mlp.up_proj.weight" in failed.message["message"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("method", "magic", "spec.method is 'magic'"),
        ("surprise", 1, "spec.surprise is 1"),
        ("training", {"learningRate": 7}, "spec.training.learningRate is 7"),
    ],
)
def test_a_manifest_that_breaks_the_contract_is_refused(
    job: Job, train: Train, field: str, value: Any, words: str
) -> None:
    document = job()
    document["spec"][field] = value
    failed = train(document)
    assert (failed.code, failed.message["reason"]) == (64, "InvalidSpec")
    assert words in failed.message["message"]


def test_a_file_may_hold_only_one_job(job: Job, train: Train) -> None:
    assert "holds 2 FineTuneJobs" in train(job(), job()).message["message"]


def test_the_real_command_exits_with_the_reason(job: Job, process: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = process(job(), tmp_path / "file").result()
    assert (failed.code, failed.message["reason"]) == (64, "InvalidSpec")
    assert "--output is" in failed.log
    assert "Traceback" not in failed.log


def test_a_full_disk_is_named() -> None:
    with pytest.raises(RuntimeError) as torch_says:
        torch.save({"weights": torch.zeros(200_000)}, "/dev/full")
    assert classify_error(torch_says.value).reason is DISK_FULL
    with pytest.raises(OSError, match="No space left") as python_says:
        Path("/dev/full").write_bytes(b"x")
    assert classify_error(python_says.value).reason is DISK_FULL


def test_a_device_without_memory_is_named() -> None:
    error = torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB.")
    assert classify_error(error).reason is OUT_OF_MEMORY
    assert "2.00 GiB" in classify_error(error).message


@pytest.mark.parametrize(
    ("gpus", "before", "after"),
    [
        (0, {}, {"HIP_VISIBLE_DEVICES": "-1", "CUDA_VISIBLE_DEVICES": "-1"}),
        (1, {}, {"CUDA_VISIBLE_DEVICES": "0"}),
        (1, {"HIP_VISIBLE_DEVICES": "3,4"}, {"HIP_VISIBLE_DEVICES": "3"}),
        (2, {}, {"CUDA_VISIBLE_DEVICES": "0,1"}),
    ],
)
def test_torch_finds_as_many_devices_as_the_job_requests(
    gpus: int, before: dict[str, str], after: dict[str, str]
) -> None:
    limit_devices(before, gpus)
    assert before == after


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "model_type"),
        ({"architectures": None, "model_type": "vit"}, "describes a vit"),
        ({"architectures": None, "model_type": "llama", "hidden_size": None}, "hidden_size"),
    ],
)
def test_a_config_that_describes_no_language_model_is_refused(
    job: Job, train: Train, claim: Path, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    shutil.copytree(claim / "tiny", tmp_path / "odd")
    (tmp_path / "odd/config.json").write_text(json.dumps(config))
    claims = {"claim": claim, "odd": tmp_path}
    failed = train(job(model={"claim": {"name": "odd", "path": "odd"}}), claims=claims)
    assert (failed.code, failed.message["reason"]) == (66, "ModelInvalid"), failed.log
    assert words in failed.message["message"]


def test_a_config_that_names_no_architecture_is_enough(job: Job, train: Train, claim: Path, tmp_path: Path) -> None:
    shutil.copytree(claim / "tiny", tmp_path / "odd")
    config = json.loads((tmp_path / "odd/config.json").read_text())
    del config["architectures"]
    (tmp_path / "odd/config.json").write_text(json.dumps(config))
    done = train(job(model={"claim": {"name": "odd", "path": "odd"}}), claims={"claim": claim, "odd": tmp_path})
    assert done.code == 0, done.log


def test_gradients_whose_norm_is_infinite_end_the_run(job: Job, train: Train, claim: Path, tmp_path: Path) -> None:
    """Train with weights that make the loss large, and the squares of its gradients too large."""
    shutil.copytree(claim / "tiny", tmp_path / "steep")
    file = tmp_path / "steep/model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] *= 1e30
    save_file(weights, file, {"format": "pt"})
    failed = train(
        job(model={"claim": {"name": "steep", "path": "steep"}}, method="full"),
        claims={"claim": claim, "steep": tmp_path},
    )
    assert (failed.code, failed.message["reason"]) == (68, "NonFiniteLoss"), failed.log
    assert "gradient norm is inf" in failed.message["message"]


def test_a_failure_without_a_name_quotes_no_credentials() -> None:
    url = "https://me:opensesame@proxy.example.com/x?X-Amz-Signature=abc123"
    try:
        raise RuntimeError(f"no route to {url}")
    except RuntimeError as error:
        failure = classify_error(error)
    assert isinstance(failure, UnclassifiedError)
    for text in (failure.message, failure.traceback):
        assert "proxy.example.com" in text
        assert "opensesame" not in text
        assert "abc123" not in text
