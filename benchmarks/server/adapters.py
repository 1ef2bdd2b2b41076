"""Adapters that change a model's answers."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

RANK = 16


def make_adapters(work: Path, model: Path, count: int) -> dict[str, Path]:
    """Write random adapters on all linear layers, by name. Each folder has the base, too, for `transformers serve`."""
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    made = {}
    for number in range(count):
        for name, weight in peft_model.named_parameters():
            if ".lora_" in name:  # far less than PEFT's own random ones, after which no sentence would be left
                weight.data.normal_(std=0.02)
        folder = work / f"adapter-{number}"
        peft_model.save_pretrained(folder)
        for file in model.iterdir():
            (folder / file.name).symlink_to(file)
        made[f"adapter-{number}"] = folder
    return made
