"""TRL's side of a case: what a plain script with SFTTrainer makes of it.

The rows become TRL's documented dataset formats as a user of TRL would write it; nothing of Hone is used. The mapping
of other spellings is the one that docs/training.md promises.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, List, Value
from parity.learned import IGNORED, Case, Learned, read_batches, split_by_loss
from parity.tokenizing import TEMPLATES
from pydantic.alias_generators import to_snake
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template
from trl import SFTConfig, SFTTrainer

# Where a part of a text begins and ends, in characters.
Span = tuple[int, int]

# The roles of ShareGPT.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def learn(case: Case, network: PreTrainedModel, model: Path, folder: Path) -> Learned:
    """Return what the script learns. Raises any exception that TRL raises."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    if case.template is not None:
        tokenizer.chat_template = TEMPLATES[case.template]
    written = {to_snake(name): value for name, value in case.training.items() if name != "extra"}
    written |= {to_snake(name): value for name, value in case.training.get("extra", {}).items()}
    rows = make_dataset(case)
    evaluation = None
    if fraction := case.options.get("evalFraction"):
        held_out = max(1, round(len(rows) * fraction))
        parts = rows.train_test_split(test_size=held_out, seed=written.get("seed", 42))
        rows, evaluation = parts["train"], parts["test"]

    def make_trainer(rows: Dataset, evaluation: Dataset | None, **changed: Any) -> SFTTrainer:
        args = SFTConfig(
            output_dir=str(folder),
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **(written | changed),
        )
        return SFTTrainer(
            model=network, args=args, train_dataset=rows, eval_dataset=evaluation, processing_class=tokenizer
        )

    if any(is_excluded(message) for row in [*rows, *(evaluation or [])] for message in get_messages(row)):
        rows = exclude_messages(rows, make_trainer)
        evaluation = evaluation and exclude_messages(evaluation, make_trainer)
        written["assistant_only_loss"] = False
    trainer = make_trainer(rows, evaluation)
    if not len(trainer.train_dataset):
        raise ValueError("no row is left to train on")
    first = trainer.train_dataset[0]
    return Learned(
        train=read_batches(trainer.get_train_dataloader()),
        evaluation=None if evaluation is None else read_batches(trainer.get_eval_dataloader()),
        first_row=split_by_loss(first["input_ids"], first["labels"], tokenizer),
        warnings=[],
    )


def make_dataset(case: Case) -> Dataset:
    """Return the rows in TRL's format. Objects stay as they are written: Arrow would add keys that other rows have."""
    given = case.rows[: case.options.get("maxSamples")]
    if case.ending == "csv":  # CSV has no null, and no missing column
        names = {name: "" for row in case.rows for name in row}
        given = [names | {name: "" if value is None else value for name, value in row.items()} for row in given]
    rows = [to_trl(case, row) for row in given]
    kinds = {name: {type(row[name]) for row in rows} for name in rows[0]}
    features: dict[str, Any] = {}
    for name, types in kinds.items():
        is_messages = name in ("messages", "prompt", "completion") and types == {list}
        features[name] = List(Json()) if is_messages else Value("string")
        if name in ("tools", "chat_template_kwargs"):
            features[name] = Json()
        elif not is_messages and types != {str}:
            raise TypeError(f"column {name} holds {types}")
    return Dataset.from_list(rows, features=Features(features))


def to_trl(case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with TRL's columns."""
    row = row | {column: row.get(own) for column, own in case.columns.items()}
    if case.form == "text":
        return {"text": row.get("text")}
    options = {"tools": row.get("tools"), "chat_template_kwargs": row.get("chat_template_kwargs") or {}}
    if isinstance(options["tools"], str):
        options["tools"] = json.loads(options["tools"])
    if case.form == "prompt-completion":
        has_messages = isinstance(row.get("prompt"), list)
        pair = {"prompt": row.get("prompt"), "completion": row.get("completion")}
        if not has_messages:
            return pair
        return {name: [drop_nulls(message) for message in messages] for name, messages in pair.items()} | options
    if case.form == "conversations":
        messages = [from_sharegpt(message) for message in row["conversations"]]
    else:
        messages = from_alpaca(row) if case.form == "alpaca" else row["messages"]
    if row.get("system") and messages[0] != {"role": "system", "content": row["system"]}:
        messages = [{"role": "system", "content": row["system"]}, *messages]
    return {"messages": [drop_nulls(message) for message in messages]} | options


def from_alpaca(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an Alpaca row as messages."""
    instruction = row["instruction"] + ("\n\n" + row["input"] if row.get("input") else "")
    if not row["instruction"]:
        instruction = row.get("input") or ""
    return [
        message
        for question, answer in [*(row.get("history") or []), (instruction, row["output"])]
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]


def from_sharegpt(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of ShareGPT with role and content."""
    if "from" not in message:
        return message
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {"role": SPEAKERS[message["from"]], "content": message["value"]} | rest


def drop_nulls(message: Any) -> Any:
    """Return a message without the keys that are null."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def get_messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all messages of a row in TRL's format."""
    found = row.get("messages") or [*row.get("prompt", []), *row.get("completion", [])]
    return [message for message in found if isinstance(message, dict)]


def is_excluded(message: dict[str, Any]) -> bool:
    """Return whether the message is marked as not to be learned."""
    return message.get("weight") == 0 or message.get("train") is False


def exclude_messages(rows: Dataset, make_trainer: Callable[..., SFTTrainer]) -> Dataset:
    """Return the rows as TRL tokenizes them at full length, with the labels of excluded messages ignored."""
    trainer = make_trainer(rows, None, max_length=None, packing=False, padding_free=False, shuffle_dataset=False)
    tokenizer: PreTrainedTokenizerBase = trainer.processing_class
    ends = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}

    def exclude(tokenized: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        text, marked = render(row, trainer)
        encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert encoded["input_ids"] == tokenized["input_ids"]
        places = encoded["offset_mapping"]
        stops = [stop for token, (_, stop) in zip(encoded["input_ids"], places, strict=True) if token in ends]
        excluded = find_excluded(text, get_messages(row), marked, stops)
        labels = [
            IGNORED if any(start < end and stop > begin for begin, end in excluded) else label
            for label, (start, stop) in zip(tokenized["labels"], places, strict=True)
        ]
        return {"input_ids": tokenized["input_ids"], "labels": labels}

    return Dataset.from_list([exclude(*pair) for pair in zip(trainer.train_dataset, rows, strict=True)])


def render(row: dict[str, Any], trainer: SFTTrainer) -> tuple[str, list[Span]]:
    """Return the text of a row, and where TRL learns what the template marks as the assistant's."""
    tokenizer: PreTrainedTokenizerBase = trainer.processing_class
    (text,), (marked,) = render_jinja_template(
        conversations=[get_messages(row)],
        tools=row["tools"],
        chat_template=tokenizer.get_chat_template(trainer.chat_template, row["tools"]),
        return_assistant_tokens_mask=True,
        **{**tokenizer.special_tokens_map, **row["chat_template_kwargs"]},
    )
    return text, [(begin, end) for begin, end in marked if trainer.args.assistant_only_loss]


def find_excluded(text: str, messages: list[dict[str, Any]], marked: list[Span], stops: list[int]) -> list[Span]:
    """Return where the excluded messages are in a text.

    A message is found by its texts, which are unique. Its own part is what the template marks together with it, or else
    what follows up to the first special token before the next message; `stops` are the ends of those.
    """
    places = [find_message(text, message) for message in messages]
    begins = [place[0] for place in places if place]
    found = []
    for message, place in zip(messages, places, strict=True):
        if not place or not is_excluded(message):
            continue
        begin, end = place
        following = min((other for other in begins if other > begin), default=len(text))
        found.append((begin, next((stop for stop in stops if end < stop <= following), end)))
        found += [
            (first, last) for first, last in marked if [other for other in begins if first <= other < last] == [begin]
        ]
    return found


def find_message(text: str, message: dict[str, Any]) -> Span | None:
    """Return where the first of the texts of a message begins, and where the last one ends."""
    content = message["content"]
    texts = [part["text"] for part in content] if isinstance(content, list) else [content]
    texts += [message.get("reasoning_content"), message.get("thinking")]
    found = [(begin, begin + len(one)) for one in texts if one and (begin := text.find(one)) >= 0]
    return (min(begin for begin, _ in found), max(end for _, end in found)) if found else None
