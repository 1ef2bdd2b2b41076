"""`hone merge`: its output is base plus adapter, and complete or absent; what it refuses has a name."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_api.artifacts.manifest import (
    BaseModelReference,
    compute_files_digest,
    describe_files,
    read_manifest,
    write_manifest,
)
from hone_api.reasons import HoneError
from hone_trainer.merging.command import merge_adapter_into_base
from hone_trainer.runtime.options import MergeOptions
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]
# Of the relative error of the logits (2-norm) that merging into bfloat16 may make. A merged weight is rounded to 8
# significant bits: a relative error of at most 2**-8, of 2**-8 / sqrt(12) = 0.0011 in the mean square. Fourteen
# matrices are merged, whose errors are independent: sqrt(14) * 0.0011 = 0.0042, doubled and a bit for what the layers
# make of it. Both sides compute in float32, so that nothing else is rounded.
TOLERANCE = 0.01
PROMPT = "what was trained is what is served"


def logits(model: Any, folder: Path) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        return model.float().eval()(**tokens).logits


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the difference relative to `other`."""
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def half(claim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder of a claim whose model `tiny` is in bfloat16, with weights so large that every layer matters."""
    folder = tmp_path_factory.mktemp("half")
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(claim / "tiny", initializer_range=0.2)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "tiny")
    AutoTokenizer.from_pretrained(claim / "tiny").save_pretrained(folder / "tiny")
    shutil.copy(claim / "text.jsonl", folder)
    return folder


@pytest.fixture(scope="module")
def trained(job: Job, train: Train, half: Path) -> Callable[..., Path]:
    """Train an adapter on the model in bfloat16, long enough to matter, and return its artifact tree."""

    def run(method: str = "lora", **lora: Any) -> Path:
        training = {"maxSteps": 16, "learningRate": 2e-2}
        done = train(job(method=method, lora={"r": 8, **lora}, training=training), claims={"claim": half})
        assert done.code == 0, done.log
        return done.output

    return run


@pytest.fixture(scope="module")
def tree(trained: Callable[..., Path]) -> Path:
    return trained()


@pytest.mark.parametrize(
    ("method", "lora"),
    [(method, lora) for method in ("lora", "qlora") for lora in ({}, {"useRslora": True}, {"useDora": True})],
)
def test_merged_is_the_unquantized_base_plus_adapter(
    trained: Callable[..., Path], half: Path, tmp_path: Path, method: str, lora: dict[str, Any]
) -> None:
    tree = trained(method, **lora)
    merge_adapter_into_base(MergeOptions(tree, tmp_path / "out"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.dtype == torch.bfloat16
    assert not hasattr(merged.config, "quantization_config")

    base = AutoModelForCausalLM.from_pretrained(half / "tiny")
    untrained = logits(base, half / "tiny")
    expected = logits(PeftModel.from_pretrained(base, tree / "adapter"), half / "tiny")
    found = logits(merged, tmp_path / "out")
    assert distance(untrained, expected) > 20 * TOLERANCE
    assert distance(found, expected) < TOLERANCE

    quantized = AutoModelForCausalLM.from_pretrained(
        half / "tiny", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    on_4_bits = PeftModel.from_pretrained(quantized, tree / "adapter")
    assert distance(logits(on_4_bits, half / "tiny"), expected) > TOLERANCE  # so the test distinguishes them


def test_a_bare_adapter_merges_in_the_requested_type(tree: Path, half: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "adapter", tmp_path / "adapter")
    for name in tmp_path.glob("adapter/*token*"):
        name.unlink()
    moved = shutil.copytree(half / "tiny", tmp_path / "moved")
    merge_adapter_into_base(MergeOptions(tmp_path / "adapter", tmp_path / "deep/out", base=str(moved), dtype="float32"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "deep/out")
    assert merged.dtype == torch.float32
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(moved), tree / "adapter")
    torch.testing.assert_close(logits(merged, moved), logits(adapted, moved), atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "deep/out").eos_token == "</s>"
    assert "the adapter in `adapter` merged into it, in float32" in (tmp_path / "deep/out/README.md").read_text()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def refused(options: MergeOptions) -> HoneError:
    with pytest.raises(HoneError) as error:
        merge_adapter_into_base(options)
    assert not list(options.out.parent.glob(f".{options.out.name}*"))
    return error.value


def test_an_existing_folder_is_left_alone(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    found = refused(MergeOptions(tree, tmp_path / "out"))
    assert (found.reason.name, found.message) == ("InvalidSpec", f"OUT is {tmp_path / 'out'}, which exists")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_changed_artifact_is_not_merged(tree: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(tree, tmp_path / "changed", ignore=shutil.ignore_patterns("checkpoints"))
    weights = load_file(changed / "adapter/adapter_model.safetensors")
    next(iter(weights.values())).add_(1)
    save_file(weights, changed / "adapter/adapter_model.safetensors", metadata={"format": "pt"})
    for place in (changed, changed / "adapter"):
        assert refused(MergeOptions(place, tmp_path / "out")).reason.name == "ArtifactCorrupt"


def test_a_base_that_is_a_changed_artifact_is_not_merged_into(tree: Path, half: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(half / "tiny", before / "merged")
    files = describe_files(before, ["merged"])
    manifest = read_manifest(tree).model_copy(
        update={"kind": "merged", "files": files, "digest": compute_files_digest(files)}
    )
    write_manifest(before, manifest)
    base = str(before / "merged")
    merge_adapter_into_base(MergeOptions(tree, tmp_path / "out", base=base))
    config = before / "merged/config.json"
    config.write_text(config.read_text() + " ")
    assert refused(MergeOptions(tree, tmp_path / "other", base=base)).reason.name == "ArtifactCorrupt"


def copied(tree: Path, folder: Path, **config: Any) -> Path:
    """Copy only the adapter, and change its configuration."""
    shutil.copytree(tree / "adapter", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("config", "reason", "message"),
    [
        (
            {"base_model_name_or_path": "/not/there"},
            "ModelNotFound",
            "The base model is /not/there, which is no folder",
        ),
        ({"base_model_name_or_path": None}, "ModelNotFound", "names no base model"),
        ({"peft_type": "PROMPT_TUNING"}, "InvalidSpec", "of the kind PROMPT_TUNING, and only LoRA is merged"),
        ({"r": "eight"}, "ArtifactCorrupt", "has the field r 'eight'"),
        ({"alora_invocation_tokens": [1]}, "AdapterMismatch", "PEFT can't merge an adapter of this kind"),
        ({"target_modules": ["elbow"]}, "AdapterMismatch", "Target modules {'elbow'}"),
        ({"target_modules": ["q_proj"]}, "AdapterMismatch", "down_proj.lora_A.weight, which the model lacks"),
    ],
    ids=["no base", "unnamed base", "another kind", "no number", "not to be merged", "no such layer", "fewer layers"],
)
def test_the_configuration_of_an_adapter_is_checked(
    tree: Path, tmp_path: Path, config: dict[str, Any], reason: str, message: str
) -> None:
    found = refused(MergeOptions(copied(tree, tmp_path / "adapter", **config), tmp_path / "out"))
    assert (found.reason.name, message in found.message) == (reason, True), found.message


def test_a_base_of_other_shapes_or_fewer_layers_is_a_mismatch(tree: Path, half: Path, tmp_path: Path) -> None:
    shapes = {"wide": ({"hidden_size": 64}, "size mismatch"), "flat": ({"num_hidden_layers": 1}, "it has base_model")}
    for name, (changes, words) in shapes.items():
        config = LlamaConfig.from_pretrained(half / "tiny", **changes)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        found = refused(MergeOptions(tree, tmp_path / "out", base=str(tmp_path / name)))
        assert found.reason.name == "AdapterMismatch"
        assert words in found.message


def test_a_base_on_a_claim_that_is_not_here_is_named(job: Job, train: Train, half: Path, tmp_path: Path) -> None:
    claim = shutil.copytree(half, tmp_path / "claim")
    tree = train(job(), claims={"claim": claim}).output
    claim.rename(tmp_path / "moved")
    found = refused(MergeOptions(tree, tmp_path / "out"))
    assert found.reason.name == "ModelNotFound"
    assert f"The base model is on claim claim, path 'tiny', which was {claim / 'tiny'} in training" in found.message
    merge_adapter_into_base(MergeOptions(tree, tmp_path / "out", base=str(tmp_path / "moved/tiny")))
    assert (tmp_path / "out/model.safetensors").is_file()


def test_bases_that_can_not_be_used_are_named(tree: Path, half: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/config.json").write_text("{}")
    nf4 = BitsAndBytesConfig(load_in_4bit=True)
    AutoModelForCausalLM.from_pretrained(half / "tiny", quantization_config=nf4).save_pretrained(tmp_path / "nf4")
    expected = {"empty": ("ModelNotFound", "no config.json"), "bad": ("ModelInvalid", "can't be loaded"),
                "nf4": ("ModelInvalid", "is quantized (bitsandbytes)")}  # fmt: skip
    for name, (reason, words) in expected.items():
        found = refused(MergeOptions(tree, tmp_path / "out", base=str(tmp_path / name)))
        assert (found.reason.name, words in found.message) == (reason, True), found.message
        assert str(tmp_path / name) in found.message


def test_a_folder_without_an_adapter_is_named(half: Path, tmp_path: Path) -> None:
    assert refused(MergeOptions(half / "tiny", tmp_path / "out")).reason.name == "ArtifactMissing"


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).write_text("the code of the model ran")
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(half: Path, tmp_path: Path) -> Path:
    """Make a base model that brings its own code, which creates the file `ran` when it runs."""
    folder = shutil.copytree(half / "tiny", tmp_path / "with-code")
    (folder / "code_of_model.py").write_text(OWN_CODE.format(mark=str(tmp_path / "ran")))
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "code_of_model.OwnConfig", "AutoModelForCausalLM": "code_of_model.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    return folder


def resealed(tree: Path, **fields: Any) -> None:
    """Write the manifest of a changed tree, as anybody with write access to it could."""
    files = describe_files(tree, ["adapter"])
    manifest = read_manifest(tree).model_copy(update={"files": files, "digest": compute_files_digest(files), **fields})
    write_manifest(tree, manifest)


def test_an_artifact_gives_no_permission_to_run_code(
    tree: Path, with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "")  # merging sets it for the process; the end of the test restores it
    monkeypatch.delenv("HF_HUB_CACHE")
    ran = tmp_path / "ran"
    adapter = copied(tree, tmp_path / "artifact/adapter", base_model_name_or_path=str(with_code))
    found = refused(MergeOptions(adapter, tmp_path / "out"))
    assert (found.reason.name, "brings its own code" in found.message) == ("InvalidSpec", True)
    assert "--trust-remote-code" in found.remedy

    shutil.copy(tree / "manifest.json", tmp_path / "artifact")
    resealed(tmp_path / "artifact", spec={"model": {"trustRemoteCode": True}})
    assert refused(MergeOptions(tmp_path / "artifact", tmp_path / "out")).message == found.message

    # The same holds for the content of the artifact's cache.
    snapshot = tmp_path / f"artifact/cache/hub/models--some--base/snapshots/{'a' * 40}"
    shutil.copytree(with_code, snapshot)
    base = BaseModelReference(name="some/base", revision="a" * 40)
    resealed(tmp_path / "artifact", spec={"model": {"trustRemoteCode": True}}, base_model=base)
    run = command(tmp_path / "artifact", tmp_path / "out", before=("env", "--unset=HF_HOME", "--unset=HF_HUB_CACHE"))
    assert run.stderr
    said = run.stderr.read()
    assert run.wait() == 64, said
    assert "The base model is some/base, and it or the adapter's tokenizer brings its own code" in said
    assert not ran.exists()

    merge_adapter_into_base(MergeOptions(adapter, tmp_path / "out", base=str(with_code), trust_remote_code=True))
    assert ran.exists()
    assert (tmp_path / "out/model.safetensors").is_file()


def test_an_adapter_can_not_name_a_module_to_import(tree: Path, tmp_path: Path) -> None:
    config = {"megatron_config": {"a": 1}, "megatron_core": "megatron.core"}
    assert "megatron_config" in refused(MergeOptions(copied(tree, tmp_path / "a", **config), tmp_path / "out")).message


def test_weights_that_are_not_finite_are_not_merged(tree: Path, tmp_path: Path) -> None:
    folder = copied(tree, tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values())).fill_(torch.nan)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert refused(MergeOptions(folder, tmp_path / "out")).reason.name == "ArtifactCorrupt"


def command(*words: str | Path, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    line = [*before, sys.executable, "-m", "hone_cli", "merge", *map(str, words)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environ)


def test_the_command_merges_and_prints_the_next_step(tree: Path, tmp_path: Path) -> None:
    run = command(tree, tmp_path / "out")
    assert run.stderr
    said = run.stderr.read()
    assert run.wait() == 0, said
    assert f"hone serve {tmp_path / 'out'}" in said
    assert f"merged into {tmp_path / 'out'}" in said
    manifest = json.loads((tree / "manifest.json").read_text())
    assert manifest["digest"] in (tmp_path / "out/README.md").read_text()


def test_a_hub_model_that_is_not_here_is_named_with_the_hub(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = refused(MergeOptions(tree, tmp_path / "out", base="someone/else"))
    assert found.reason.name == "HubUnreachable"
    assert found.message.startswith("The base model is someone/else, which is not in the cache")
    assert "--base" in found.remedy


@pytest.fixture(scope="module")
def large(claim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a base of 64 MB with an adapter."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig.from_pretrained(claim / "tiny", intermediate_size=65536, num_hidden_layers=3)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(claim / "tiny").save_pretrained(folder / "base")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        folder / "adapter"
    )
    return folder


def test_a_full_disk_is_named_and_leaves_nothing(large: Path, tmp_path: Path) -> None:
    """Merge in a file system of 8 MB, which a separate user namespace may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=8m none {disk} && "$@"; code=$?; ls -A {disk} >&2; exit $code'
    before = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    if subprocess.run([*before[:-2], f"mount -t tmpfs none {disk}"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    run = command(large / "adapter", disk / "out", "--base", large / "base", before=before)
    assert run.stderr
    said = run.stderr.read()
    assert run.wait() == 74, said
    assert "error: DiskFull" in said
    assert said.rstrip().endswith(f"Make room where {disk / 'out'} is, and merge again.")


def test_a_merge_that_is_stopped_leaves_nothing(large: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    run = command(large / "adapter", tmp_path / "there/out", "--base", large / "base")
    assert run.stderr
    for line in run.stderr:
        if line.startswith("adapter "):
            run.send_signal(signal.SIGTERM)
            break
    said = run.stderr.read()
    assert run.wait() == 75, said
    assert f"stopped; {tmp_path / 'there/out'} was not written" in said
    assert list((tmp_path / "there").iterdir()) == []
