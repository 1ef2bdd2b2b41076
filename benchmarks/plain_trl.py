"""The script without Hone: TRL's SFTTrainer on a JSON-lines file. Usage: plain_trl.py MODEL ROWS FOLDER JSON

JSON holds arguments of SFTConfig. Prints the seconds of trainer.train().
"""

import json
import sys
import time

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

model, rows, folder, arguments = sys.argv[1:]
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
    args=SFTConfig(output_dir=folder, report_to="none", disable_tqdm=True, **json.loads(arguments)),
    train_dataset=load_dataset("json", data_files=rows, split="train", cache_dir=f"{folder}/datasets"),
    processing_class=AutoTokenizer.from_pretrained(model),
    peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
)
started = time.monotonic()
trainer.train()
print(f"seconds {time.monotonic() - started:.4f}")
