"""The check of weight files before loading refuses what loading refuses, for each architecture of the table."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architecture_table import TABLE, Architecture
from hone_api.reasons import HoneError
from hone_trainer.memory import architecture as outlines
from hone_trainer.models import weight_files
from long_matrix import sample
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

Weights = dict[str, torch.Tensor]


def drop(found: Weights, name: str) -> None:
    del found[name]


def widen(found: Weights, name: str) -> None:
    found[name] = torch.cat([found[name], found[name]])


def keep(found: Weights, name: str) -> None:
    found[f"{name}.of_another_model"] = found[name].clone()


def judge(run: Callable[[], object]) -> str:
    try:
        run()
    except HoneError as error:
        return error.reason.name
    return "taken"


@pytest.mark.parametrize("one", sample(TABLE, "architectures: weights", 8), ids=lambda one: one.name)
def test_the_check_of_weight_files_agrees_with_loading(
    one: Architecture, make_architecture: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make_architecture(one), tmp_path / "model"))
    outline = outlines.build_meta_model(AutoConfig.from_pretrained(folder))
    assert weight_files.check_weight_files(outline, folder, "The base model") == []
    whole = load_file(folder / "model.safetensors")
    # A fault in weights that transformers joins to others while loading, such as those of experts, shows in loading.
    names = sorted(whole.keys() & outline.state_dict().keys())
    for change in (drop, widen, keep):
        found, name = dict(whole), random.Random(one.name).choice(names)
        change(found, name)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
        checked = judge(lambda: weight_files.check_weight_files(outline, folder, "The base model"))
        loaded = judge(lambda: weight_files.load_causal_lm(str(folder), "The base model", dtype="auto"))
        assert (change, name, checked) == (change, name, loaded)
        assert loaded == "taken" or change is not keep
