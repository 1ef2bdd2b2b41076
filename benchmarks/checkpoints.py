"""Seconds that training waits for a checkpoint: Hone's whole saving against a copy to host memory and a bare write.

The bare write is what any complete checkpoint needs: the same files' bytes, copied in memory, written and forced to the
same disk. Both alternate, and the order changes every round. Goal: at most 1.1.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from common import make_model, print_comparison
from datasets import Dataset
from hone_trainer.distributed.process_group import ProcessGroup
from hone_trainer.storage.checkpoints import MARKER
from hone_trainer.training.trainer import HoneTrainer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl.trainer.sft_config import SFTConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden-size", type=int, default=768, help="768 makes checkpoints of about 0.7 GB")
    parser.add_argument("--folder", help="on the disk to measure (default: the temporary folder's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        trainer = make_trainer(folder, options.hidden_size)
        trainer.train()
        size, ours, bare = 0.0, [], []
        for number in range(options.rounds):
            trainer.state.global_step = number + 2
            source = sorted((folder / "out").glob("step-*"))[-1]
            contents = {path.name: path.read_bytes() for path in source.iterdir() if path.name != MARKER}
            size = sum(map(len, contents.values())) / 1e9
            for ours_now in (True, False) if number % 2 == 0 else (False, True):
                os.sync()
                seconds = measure_save(trainer) if ours_now else measure_write(folder / "bare", contents)
                (ours if ours_now else bare).append(seconds / size)
    print(f"a checkpoint of {size:.2f} GB in {len(contents)} files")
    print_comparison("saving", "s/GB", ours, bare, "copy and bare write")


def make_trainer(folder: Path, hidden_size: int) -> HoneTrainer:
    """Return a full training of a Llama of 8 layers in float32, so that a checkpoint has 12 bytes per parameter."""
    tokenizer = AutoTokenizer.from_pretrained(make_model(folder / "tokenizer"))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=3 * hidden_size, num_hidden_layers=8,
        num_attention_heads=8, max_position_embeddings=128,
    )  # fmt: skip
    args = SFTConfig(
        output_dir=str(folder / "out"), max_steps=1, per_device_train_batch_size=1, bf16=False, report_to="none",
        use_cpu=True, activation_checkpointing=False, disable_tqdm=True, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    rows = Dataset.from_dict({"text": ["a row"] * 4})
    return HoneTrainer(
        model=LlamaForCausalLM(config), args=args, train_dataset=rows, processing_class=tokenizer,
        keep_checkpoints=1, before_sealing=lambda: None, group=ProcessGroup(),
    )  # fmt: skip


def measure_save(trainer: HoneTrainer) -> float:
    """Return the seconds for which the training loop is stopped."""
    began = time.perf_counter()
    trainer._save_checkpoint(trainer.model, None)
    return time.perf_counter() - began


def measure_write(folder: Path, contents: dict[str, bytes]) -> float:
    """Return the seconds to copy, write and force the same bytes to the disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    began = time.perf_counter()
    copies = {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in contents.items()}
    for name, copy in copies.items():
        with (folder / name).open("wb") as file:
            file.write(copy.numpy().data)
            file.flush()
            os.fsync(file.fileno())
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
