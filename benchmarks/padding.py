"""How much of what is computed is padding: AMD's how-to and profile auto on guanaco's lengths. Nothing is trained.

Goal: 0.97 of the computed tokens are of rows, with what the profile chooses on a GPU.

The lengths are those of the 1,000 rows of mlabonne/guanaco-llama2-1k in tokens of Llama 2, in their order
(guanaco_lengths.txt). The profile chooses for Llama 2 7B on an MI300X; rows are cut, packed, put in order and collated
by the trainer's own code.
"""

import argparse
import statistics
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from common import make_model
from datasets import Dataset, disable_progress_bars
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.gpus import GPUS
from hone_trainer.config import sft_config
from hone_trainer.config.auto_profile import Choice, TrainingDevice, find_group_batches
from hone_trainer.config.trl_config import ALREADY_PREPARED, make_sft_config
from hone_trainer.data import statistics as data_statistics
from hone_trainer.data.statistics import Truncation
from hone_trainer.data.tokenization import DatasetTokenizer
from hone_trainer.distributed.process_group import ProcessGroup
from hone_trainer.memory import architecture
from hone_trainer.preparation.device_plan import DevicePlanner
from hone_trainer.training.trainer import HoneTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

ROOT = Path(__file__).parents[1]
LENGTHS = Path(__file__).with_name("guanaco_lengths.txt")
GOAL = 0.97
# The profile's choices that decide which tokens are computed together.
ABOUT_ROWS = ("packing", "train_sampling_strategy", "per_device_train_batch_size", "gradient_accumulation_steps")
TWICE = {
    "trainSamplingStrategy": "group_by_length",
    "perDeviceTrainBatchSize": 4,
    "gradientAccumulationSteps": 2,
}


@dataclass(frozen=True)
class Case:
    """A run whose batches are measured. `flash`: whether the profile can choose FlashAttention."""

    name: str
    method: str
    training: dict[str, Any]
    flash: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5, help="orders to draw")
    options = parser.parse_args()
    disable_progress_bars()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        model = make_model(Path(name) / "model")
        for case in make_cases():
            choices, shares = measure_padding(case, model, options.epochs)
            chosen = ", ".join(f"{choice.field}={choice.value}" for choice in choices) or "nothing chosen"
            verdict = f"; goal {GOAL}: {min(shares) >= GOAL}" if case.training["profile"] == "auto" else ""
            print(f"{case.name}: {statistics.median(shares):.4f} ({min(shares):.4f} to {max(shares):.4f}){verdict}")
            print(f"  {chosen}", flush=True)


def make_cases() -> list[Case]:
    """Return the how-to as AMD runs it, TRL's defaults, and the profile with and without FlashAttention."""
    written: dict[str, Any] = yaml.safe_load((ROOT / "examples/llama2-guanaco/lora.yaml").read_text())["spec"]
    limit = written["training"]["maxLength"]
    auto = {"profile": "auto", "maxLength": limit}
    found = [
        Case("the how-to", "lora", written["training"]),
        Case("TRL's defaults", "lora", {"profile": "none", "maxLength": limit}),
        Case("grouped by length, 4 rows twice a step", "lora", {"profile": "none", "maxLength": limit} | TWICE),
    ]
    for method in ("lora", "full"):
        found.append(Case(f"profile auto, {method}, without FlashAttention", method, auto))
        found.append(Case(f"profile auto, {method}, with FlashAttention", method, auto, flash=True))
    return found


def measure_padding(case: Case, model: Path, epochs: int) -> tuple[list[Choice], list[float]]:
    """Return the profile's choices, and the share of computed tokens that belong to rows in each of the epochs."""
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"name": "meta-llama/Llama-2-7b-chat-hf"},
            "dataset": {"name": "mlabonne/guanaco-llama2-1k", "format": "text"},
            "method": case.method,
            "training": case.training,
            "resources": {"gpus": 1},
        }
    )
    whole = make_rows()
    with tempfile.TemporaryDirectory() as name:
        written = make_sft_config(sft_config.make_sft_keywords(spec, Path(name), use_cpu=True))
        choices = choose_profile(spec, whole, written, case.flash)
        keywords = sft_config.make_sft_keywords(spec, Path(name), use_cpu=True, choices=choices)
        # The rest is of the device, and there is none.
        keywords |= {"bf16": False, "dataloader_num_workers": 0, "optim": "adamw_torch"}
        args = make_sft_config(keywords)
        tokenizer = AutoTokenizer.from_pretrained(model)
        rows = DatasetTokenizer(args, tokenizer, {"text": ""}).truncate(whole, bool(args.packing))
        trainer = HoneTrainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=make_sft_config(keywords | ALREADY_PREPARED),
            train_dataset=rows,
            processing_class=tokenizer,
            group=ProcessGroup(),
            keep_checkpoints=1,
            before_sealing=lambda: None,
            group_batches=find_group_batches(choices),
        )
        shares = []
        for epoch in range(epochs):
            trainer.state.epoch = epoch
            shares.append(compute_share(trainer.get_train_dataloader()))
    return [choice for choice in choices if choice.field in ABOUT_ROWS], shares


def compute_share(batches: Any) -> float:
    """Return tokens of rows over computed tokens. A batch without padding has no mask."""
    row_tokens = computed = 0
    for batch in batches:
        computed += batch["input_ids"].numel()
        row_tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
    return row_tokens / computed


def choose_profile(spec: FineTuneJobSpec, whole: Dataset, written: Any, flash: bool) -> list[Choice]:
    """Return the profile's choices for Llama 2 7B on an MI300X."""
    memory = next(gpu.memory for gpu in GPUS if gpu.name == "MI300X")
    device = TrainingDevice("gpu", "MI300X", memory, has_bfloat16=True, has_flash_attention=flash, cores=24)
    lengths = data_statistics.make_split_report(
        data_statistics.count_tokens(whole), Truncation.from_args(written, False)
    )
    outline = architecture.build_meta_model(LlamaConfig(max_position_embeddings=4096, dtype="float16"))
    return DevicePlanner(spec, outline, device, lengths, written.max_length).choose_profile()


def make_rows() -> Dataset:
    """Return rows of guanaco's lengths, in which every token is learned."""
    lengths = [int(length) for length in LENGTHS.read_text().split()]
    tokens = [[5] * length for length in lengths]
    return Dataset.from_dict({"input_ids": tokens, "labels": tokens})


if __name__ == "__main__":
    main()
