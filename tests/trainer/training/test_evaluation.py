"""The model before and after training is measured, and training is the same as without the measurement."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from hone_api.finetunejobs.spec import EvaluationOptions
from hone_api.reasons import HoneError
from hone_trainer.preparation import prompts
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]

HELD_OUT = {"claim": {"name": "claim", "path": "text.jsonl"}, "evalFraction": 0.25}
PROMPTS = ["what was trained", "</script><b>say something"]
ASKED = {"prompts": PROMPTS, "maxNewTokens": 12}
DROPOUT = {"r": 4, "loraDropout": 0.2}


@pytest.fixture(scope="module")
def asked(job: Job, train: Train) -> Any:
    done = train(job(dataset=HELD_OUT, evaluation=ASKED, lora=DROPOUT, training={"maxSteps": 20}))
    assert done.code == 0, done.log
    return done


def before(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "checkpoints/before.json").read_text())
    return found


def greedy(model: Any, tokenizer: Any, prompt: str, length: int) -> str:
    """Return the greedy answer in the simplest way: one full forward pass for each token."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    read = ids.shape[1]
    model.eval()
    for _ in range(length):
        with torch.no_grad():
            token = model(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, token[None, None]], dim=1)
        if token == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[0, read:], skip_special_tokens=True))


def test_loss_and_perplexity_of_the_base_and_of_the_result(asked: Any, claim: Path, tmp_path: Path) -> None:
    metrics = asked.manifest["metrics"]
    assert metrics["evalLossAfter"] < metrics["evalLossBefore"] - 0.05
    for when in ("Before", "After"):
        assert metrics[f"perplexity{when}"] == pytest.approx(math.exp(metrics[f"evalLoss{when}"]))
    said = f"evaluation loss {metrics['evalLossBefore']:.4g} before, {metrics['evalLossAfter']:.4g} after"
    assert said in asked.log
    assert asked.message["metrics"] == metrics
    rows = load_dataset("json", data_files=str(claim / "text.jsonl"), split="train", cache_dir=str(tmp_path))
    base = SFTTrainer(
        model=str(claim / "tiny"),
        args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=rows,
        eval_dataset=rows.train_test_split(test_size=6, seed=42)["test"],
    )
    assert metrics["evalLossBefore"] == pytest.approx(base.evaluate()["eval_loss"], rel=1e-6)


def test_answers_are_greedy_and_use_the_chat_template(asked: Any, claim: Path) -> None:
    base, tokenizer = (
        AutoModelForCausalLM.from_pretrained(claim / "tiny"),
        AutoTokenizer.from_pretrained(claim / "tiny"),
    )
    first = [greedy(base, tokenizer, prompt, 12) for prompt in PROMPTS]
    adapted = PeftModel.from_pretrained(base, asked.output / "adapter")
    last = [greedy(adapted, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert before(asked.output)["answers"] == first
    report = json.loads((asked.output / "report/report.json").read_text())
    assert report["evaluation"]["answers"] == [
        {"prompt": prompt, "before": one, "after": other}
        for prompt, one, other in zip(PROMPTS, first, last, strict=True)
    ]
    assert first != last


def test_training_is_bit_equal_to_training_without_the_evaluation(job: Job, train: Train, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lora": DROPOUT, "training": {"maxSteps": 6}}
    with_it = train(job(evaluation=ASKED, **settings))
    without = train(job(**settings))
    assert (with_it.code, without.code) == (0, 0), with_it.log + without.log
    assert with_it.metrics == without.metrics
    assert weights(with_it.output).keys() == weights(without.output).keys()
    assert all(torch.equal(found, weights(without.output)[name]) for name, found in weights(with_it.output).items())


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter/adapter_model.safetensors")


def test_losses_are_those_of_trl_when_rows_are_held_out(job: Job, train: Train, claim: Path, tmp_path: Path) -> None:
    rows = load_dataset("json", data_files=str(claim / "text.jsonl"), split="train", cache_dir=str(tmp_path))
    parts = rows.train_test_split(test_size=6, seed=42)
    args = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", save_strategy="no", max_steps=6,
        eval_strategy="steps", eval_steps=6, per_device_train_batch_size=2, logging_steps=1, learning_rate=1e-2,
        activation_checkpointing=False,
    )  # fmt: skip
    trl = SFTTrainer(
        model=str(claim / "tiny"),
        args=args,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        peft_config=LoraConfig(
            r=4, lora_alpha=32, lora_dropout=0.2, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trl.train()
    torch.set_num_threads(threads)
    hone = train(job(dataset=HELD_OUT, evaluation=ASKED, lora=DROPOUT, training={"maxSteps": 6}))
    assert hone.code == 0, hone.log
    names = ("loss", "grad_norm", "learning_rate")
    expected = [{name: line[name] for name in names} for line in trl.state.log_history if "loss" in line]
    assert [{name: line[name] for name in names} for line in hone.metrics[1:]] == expected
    assert (
        hone.metrics[-1]["eval_loss"]
        == next(line for line in trl.state.log_history if "eval_loss" in line)["eval_loss"]
    )


def test_measurements_before_training_are_kept_at_a_resume(job: Job, train: Train, tmp_path: Path) -> None:
    document = job(dataset=HELD_OUT, evaluation=ASKED)
    assert train(document, output=tmp_path / "out").code == 0
    (tmp_path / "out/manifest.json").unlink()
    kept = {"loss": 1.5, "perplexity": 4.5, "answers": ["kept", "as well"]}
    (tmp_path / "out/checkpoints/before.json").write_text(json.dumps(kept))
    again = train(document, output=tmp_path / "out")
    assert again.code == 0, again.log
    assert again.manifest["metrics"]["evalLossBefore"] == 1.5
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert [answer["before"] for answer in report["evaluation"]["answers"]] == ["kept", "as well"]
    assert "asking the base model" not in again.log


def test_sigterm_during_the_questions_to_the_base_model_ends_the_run_at_once(
    job: Job, process: Callable[..., Any], tmp_path: Path
) -> None:
    long = {"prompts": ["say something"] * 50, "maxNewTokens": 200}
    run = process(job(evaluation=long, training={"eosToken": "<s>"}), tmp_path / "out")
    run.wait_for(lambda: "asking the base model 50 prompts" in run.log())
    run.signal(signal.SIGTERM)
    stopped = run.result()
    assert (stopped.code, stopped.message["reason"]) == (75, "Interrupted")
    assert "before training began" in stopped.message["message"]
    assert not (tmp_path / "out/checkpoints/before.json").exists()
    assert not list((tmp_path / "out/checkpoints").glob("step-*"))


def test_a_prompt_without_room_for_an_answer_is_refused_and_one_with_little_room_reported(
    job: Job, train: Train
) -> None:
    refused = train(job(evaluation={"prompts": ["short", "x " * 300]}))
    assert (refused.code, refused.message["reason"]) == (64, "InvalidSpec")
    assert "spec.evaluation.prompts[1] has " in refused.message["message"]
    assert "and the model reads 256" in refused.message["message"]
    warned = train(job(evaluation={"prompts": ["x " * 110], "maxNewTokens": 128}))
    assert warned.code == 0, warned.log
    assert "warning: spec.evaluation.prompts[0] has " in warned.log


def test_a_prompt_without_a_chat_template_is_used_unchanged(claim: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(claim / "no-template")
    found, warnings = prompts.encode_prompts(EvaluationOptions(prompts=["what was"]), tokenizer, lambda: None)
    assert found == [prompts.EvalPrompt("what was", tokenizer("what was")["input_ids"], 128)]
    assert warnings == []


def test_a_prompt_that_the_chat_template_refuses_is_named(claim: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(claim / "tiny")
    tokenizer.chat_template = "{{ raise_exception('Start with the system') }}"
    with pytest.raises(HoneError, match=r"spec.evaluation.prompts\[0\] is refused .*: Start with the system"):
        prompts.encode_prompts(EvaluationOptions(prompts=["hi"]), tokenizer, lambda: None)


def test_a_base_model_whose_evaluation_loss_is_not_finite_is_refused_before_the_first_step(
    job: Job, train: Train, claim: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "claim/broken"
    shutil.copytree(claim / "tiny", broken)
    shutil.copy(claim / "text.jsonl", broken.parent)
    found = load_file(broken / "model.safetensors")
    found["model.norm.weight"][0] = math.nan
    save_file(found, broken / "model.safetensors", {"format": "pt"})
    document = job(dataset=HELD_OUT, model={"claim": {"name": "claim", "path": "broken"}})
    failed = train(document, claims={"claim": broken.parent})
    assert (failed.code, failed.message["reason"]) == (68, "NonFiniteLoss"), failed.log
    assert "The evaluation loss of the base model is nan, before the first step. Check" in failed.message["message"]
    assert not list(failed.output.glob("checkpoints/step-*"))
