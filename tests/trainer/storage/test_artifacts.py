"""The output of a run: it loads with PEFT and transformers without changes, and its manifest proves it."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_api.artifacts.manifest import BaseModelReference, read_manifest
from hone_api.artifacts.verification import verify
from hone_api.finetunejobs.sources import BaseModelSource
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.pods.pod_options import PodOptions
from hone_api.reasons import HoneError
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.models import base_model
from hone_trainer.reporting.model_card import make_model_card, read_license
from hone_trainer.storage import output_dir
from hone_trainer.storage.artifact import save_models
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
PROMPT = "what was trained"
CANARY = "hunter2"
POD = {
    "env": [{"name": "HTTPS_PROXY", "value": f"http://user:{CANARY}@proxy"}],
    "annotations": {"example.com/a": CANARY},
    "labels": {"a": CANARY},
    "nodeSelector": {"a": CANARY},
    "affinity": {"a": CANARY},
    "image": f"registry/{CANARY}",
}
TOKEN = {"name": "hub-token", "key": "token"}


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)).logits


def load(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def both(job: Job, train: Train) -> Any:
    evaluated = {"claim": {"name": "claim", "path": "text.jsonl"}, "evalFraction": 0.25}
    document = job(
        dataset=evaluated, output={"save": "both"}, training={"maxSteps": 20}, lora={"r": 4}, pod=POD, tokenSecret=TOKEN
    )
    return train(document)


def test_no_file_of_the_output_contains_the_pods_options(both: Any) -> None:
    assert both.manifest["spec"]["tokenSecret"] == TOKEN
    files = [path for path in both.output.rglob("*") if path.is_file()]
    assert {"manifest.json", "run.json", "report.json", "report.html", "prepared.json"} <= {path.name for path in files}
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


def test_a_run_that_kept_the_pods_options_is_resumed(both: Any, job: Job) -> None:
    """Accept a record of earlier versions, which wrote the options into run.json."""
    spec = FineTuneJob.model_validate(job(pod=POD)).spec
    assert output_dir.find_differing_field(spec.to_wire(), spec.model_copy(update={"pod": PodOptions()})) is None
    assert output_dir.find_differing_field(spec.drop_unpublished(), spec) is None


def test_the_adapter_loads_with_peft_and_the_merged_model_equals_base_and_adapter(both: Any, claim: Path) -> None:
    assert both.code == 0, both.log
    base, tokenizer = load(claim / "tiny")
    untrained = logits(base, tokenizer)
    adapted = logits(PeftModel.from_pretrained(base, both.output / "adapter"), tokenizer)
    found = logits(AutoPeftModelForCausalLM.from_pretrained(both.output / "adapter"), tokenizer)
    merged = logits(*load(both.output / "merged"))
    assert torch.equal(found, adapted)
    assert (adapted - untrained).abs().max() > 1e-2
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)


def test_the_manifest_describes_every_file_and_verifies(both: Any) -> None:
    manifest = read_manifest(both.output)
    verify(both.output, manifest)
    assert (manifest.kind, manifest.job) == ("both", "tiny")
    assert manifest.base_model.to_wire() == {"claim": "claim", "path": "tiny"}
    files = {path.relative_to(both.output).as_posix() for path in both.output.rglob("*") if path.is_file()}
    assert set(manifest.files) == {path for path in files if path.startswith(("adapter/", "merged/"))}
    assert {"adapter/adapter_model.safetensors", "merged/model.safetensors", "merged/tokenizer.json"} <= set(
        manifest.files
    )
    assert set(manifest.versions) == {"hone", "torch", "transformers", "trl", "peft", "datasets", "accelerate"}
    assert not [path for path in both.output.iterdir() if path.name.endswith(".tmp")]


@pytest.fixture(scope="module")
def opened() -> list[Path]:
    """Return every path that Python opens from now on. An audit hook can't be removed: it ends with the process."""
    paths: list[Path] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            paths.append(Path(arguments[0]))

    sys.addaudithook(hook)
    return paths


def test_the_digests_of_a_base_model_in_an_artifact_are_verified(both: Any, tmp_path: Path) -> None:
    shutil.copytree(both.output, tmp_path / "before", ignore=shutil.ignore_patterns("checkpoints", "cache"))
    source = BaseModelSource.model_validate({"claim": {"name": "claim", "path": "before/merged"}})
    inputs = JobInputs(None, {"claim": tmp_path}, {}, {})  # type: ignore[arg-type]
    assert base_model.locate_base_model(source, inputs, None).location == str(tmp_path / "before/merged")
    config = tmp_path / "before/merged/config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(HoneError, match=r"merged/config\.json") as refused:
        base_model.locate_base_model(source, inputs, None)
    assert refused.value.reason.name == "ArtifactCorrupt"


def test_loaders_open_no_file_that_the_manifest_lacks(both: Any, claim: Path, opened: list[Path]) -> None:
    opened.clear()
    load(both.output / "merged")
    AutoTokenizer.from_pretrained(both.output / "adapter")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(claim / "tiny"), both.output / "adapter")
    found = {path.relative_to(both.output).as_posix() for path in opened if path.is_relative_to(both.output)}
    assert {"adapter/adapter_config.json", "merged/config.json", "merged/tokenizer.json"} <= found
    assert found <= set(read_manifest(both.output).files)


def test_the_termination_message_agrees_with_the_manifest_and_the_log(both: Any) -> None:
    manifest, word = both.manifest, both.message
    assert word["outcome"] == "Succeeded"
    assert word["artifact"] == {
        "kind": "both",
        "digest": manifest["digest"],
        "baseModel": "tiny",
        "baseConfig": manifest["baseConfig"],
    }
    assert word["metrics"] == manifest["metrics"]
    assert word["parameters"] == manifest["parameters"]
    assert set(word["metrics"]) == {
        "trainLoss", "trainRuntime", "trainSamplesPerSecond", "trainStepsPerSecond", "numTokens",
        "evalLossBefore", "evalLossAfter", "perplexityBefore", "perplexityAfter",
    }  # fmt: skip
    losses = [line["loss"] for line in both.metrics[1:]]
    assert [line["step"] for line in both.metrics] == list(range(21))
    assert word["metrics"]["trainLoss"] == pytest.approx(sum(losses) / 20)
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.05
    assert word["metrics"]["evalLossBefore"] == both.metrics[0]["eval_loss"]
    assert word["metrics"]["evalLossAfter"] == both.metrics[-1]["eval_loss"]
    assert word["metrics"]["numTokens"] == both.metrics[-1]["num_tokens"]
    assert word["metrics"]["trainSamplesPerSecond"] == pytest.approx(40 / word["metrics"]["trainRuntime"], rel=0.01)
    assert (word["progress"]["step"], word["progress"]["percent"], word["progress"]["eta"]) == (20, 100, 0)


def test_the_parameters_are_counted(both: Any) -> None:
    # Of rank 4: two layers, each with q and o (32x32), k and v (32x16), gate, up and down (32x64).
    trainable = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert both.message["parameters"]["trainable"] == trainable
    assert f"trainable params: {trainable:,} ||" in both.log


def test_each_folder_has_a_model_card(both: Any, claim: Path) -> None:
    for name, library in (("adapter", "peft"), ("merged", "transformers")):
        card = (both.output / name / "README.md").read_text()
        assert f"library_name: {library}" in card
        assert both.manifest["datasetFingerprint"] in card
        assert "| trainLoss |" in card
        assert f'from_pretrained("{name}")' in card
        matter = ModelCard(card).data
        assert (matter.library_name, matter.pipeline_tag, matter.model_name) == (library, "text-generation", "tiny")
        results = {result.metric_type: result.metric_value for result in matter.eval_results}
        assert results["perplexity"] == pytest.approx(both.manifest["metrics"]["perplexityAfter"], rel=1e-5)
        assert results["loss"] == pytest.approx(both.manifest["metrics"]["evalLossAfter"], rel=1e-5)


def test_the_card_names_base_relation_dataset_and_license(job: Job, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: llama2\nlanguage: en\n---\n# Llama\n")
    dataset = {"name": "me/rows", "evalSplit": "test"}
    tuned = FineTuneJob.model_validate(job(model={"name": "me/base"}, dataset=dataset))
    base = BaseModelReference(name="me/base", revision="0" * 40)
    for folder, relation in (("adapter", "adapter"), ("merged", "finetune"), ("model", "finetune")):
        written = make_model_card(tuned, base, read_license(tmp_path), {"evalLossAfter": 1.5}, "sha256:0", folder)
        matter = ModelCard(written).data
        assert (matter.base_model, matter.base_model_relation, matter.datasets) == ("me/base", relation, ["me/rows"])
        assert (matter.license, matter.license_name) == ("other", "llama2")
        (result,) = matter.eval_results
        assert (result.dataset_type, result.dataset_split, result.metric_value) == ("me/rows", "test", 1.5)
    (tmp_path / "README.md").write_text("# no front matter: [\n")
    assert read_license(tmp_path) == {} == read_license(None)


def test_full_training_saves_the_full_model_ready_to_serve(job: Job, train: Train, claim: Path) -> None:
    done = train(job(method="full"))
    assert (done.code, done.manifest["kind"]) == (0, "model"), done.log
    base, tokenizer = load(claim / "tiny")
    model, own = load(done.output / "model")
    assert (logits(model, own) - logits(base, tokenizer)).abs().max() > 1e-2
    assert model.config.use_cache
    assert own.chat_template == tokenizer.chat_template
    assert done.message["parameters"]["trainable"] == done.message["parameters"]["total"] == base.num_parameters()


def test_a_big_model_is_saved_in_shards_with_an_index(claim: Path, tmp_path: Path) -> None:
    model, tokenizer = load(claim / "tiny")
    save_models(tmp_path, model, tokenizer, "model", lambda folder: "a card", lambda: model, shard_size="40KB")
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(set(index["weight_map"].values())) == shards
    assert torch.equal(logits(*load(tmp_path / "model")), logits(model, tokenizer))


def test_half_precision_weights_stay_as_they_were_saved(job: Job, train: Train, claim: Path, tmp_path: Path) -> None:
    model, tokenizer = load(claim / "tiny")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    source = {"claim": {"name": "half", "path": "half"}}
    claims = {"claim": claim, "half": tmp_path}
    kept = train(job(model=source, method="full"), claims=claims)
    raised = train(job(model=source | {"dtype": "float32"}, method="full"), claims=claims)
    assert load(kept.output / "model")[0].dtype == torch.bfloat16
    assert load(raised.output / "model")[0].dtype == torch.float32
