"""A tokenizer to which a test gives special tokens, and all checks of rows, in the test's own process."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Json, List, Value, disable_progress_bars
from hone_api.finetunejobs.training import TrainingArguments
from hone_trainer.checks import preconditions
from hone_trainer.checks.limits import ModelLimits
from hone_trainer.checks.tokenized import SplitChecker
from hone_trainer.data.dataset import LoadedDataset
from hone_trainer.data.formats import RowLayout
from hone_trainer.data.messages import MessageCounts
from hone_trainer.data.tokenization import DatasetTokenizer
from hone_trainer.preparation.rows import tokenize_split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from trl.trainer.sft_config import SFTConfig

# What looks like a special token in a chat template.
MARKUP = re.compile("<[|\uff5c]?[A-Za-z_\u2581]+[|\uff5c]?>|\\[/?[A-Za-z_]+\\]")


def make_tokenizer(end: str, template: str | None = None, begin: str | None = None, adds: str = "") -> Any:
    """Make a tokenizer of bytes, whose special tokens are `begin`, `end` and the markup in the template.

    `adds` are the special tokens, by name, that it puts around every text: "begin", "end" or both.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = list(dict.fromkeys([end, *([begin] if begin else []), *MARKUP.findall(template or "")]))
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(special)
    parts = [f"{begin}:0" if "begin" in adds else "", "$A:0", f"{end}:0" if "end" in adds else ""]
    if adds:
        known = [(token, vocabulary[token]) for token in (begin, end) if token]
        inner.post_processor = processors.TemplateProcessing(single=" ".join(filter(None, parts)), special_tokens=known)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, bos_token=begin)
    tokenizer.chat_template = template
    return tokenizer


def check_rows(
    rows: list[dict[str, Any]], tokenizer: Any, folder: Path, limits: ModelLimits, stops: set[str], **training: Any
) -> list[str]:
    """Tokenize the rows, and return the warnings. Raises HoneError."""
    features = Features(
        {name: List(Json()) if isinstance(value, list) else Value("string") for name, value in rows[0].items()}
    )
    given = Dataset.from_list(rows, features=features)
    kind: Any = next((kind for kind in ("messages", "text") if kind in rows[0]), "prompt-completion")

    def stream() -> Any:
        return ((f"rows.jsonl, line {number}", row) for number, row in enumerate(rows, start=1))

    layout = RowLayout(kind, {column: column for column in rows[0]})
    counts = MessageCounts()
    for messages in (value for row in rows for value in row.values() if isinstance(value, list)):
        counts.add(messages)
    data = LoadedDataset(given, None, layout, [stream], counts, [])  # type: ignore[list-item]
    written = TrainingArguments.model_validate(
        {name: value for name, value in training.items() if name in TrainingArguments.model_fields}
    )
    preconditions.check_tokenizer(data, tokenizer, written)
    args = SFTConfig(str(folder), use_cpu=True, bf16=False, report_to="none", **training)
    tokenizing = DatasetTokenizer(args, tokenizer, rows[0])
    vocabulary = tokenizer.get_vocab()
    checker = SplitChecker(data, tokenizer, written, limits, {vocabulary[token] for token in stops})
    split = tokenize_split(given, tokenizing, checker, "to train on")
    return checker.find_warnings(split, tokenizing, bool(args.packing))


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[..., Any]:
    return make_tokenizer


@pytest.fixture
def warnings_of(tmp_path: Path) -> Callable[..., list[str]]:
    """Return the warnings about the rows: warnings_of(rows, tokenizer, limits=, stops=, **training)."""

    def run(rows: list[dict[str, Any]], tokenizer: Any, **more: Any) -> list[str]:
        disable_progress_bars()
        limits = more.pop("limits", ModelLimits(None, None, is_hard=False))
        return check_rows(rows, tokenizer, tmp_path, limits, more.pop("stops", set()), **more)

    return run
