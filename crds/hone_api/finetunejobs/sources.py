"""Where a FineTuneJob's base model and dataset come from."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from hone_api.common import (
    ApiModel,
    ClaimPath,
    DataKey,
    HubName,
    ObjectName,
    Revision,
    declare_rules,
    make_rule,
    require_exactly_one,
)
from hone_api.dtypes import Dtype
from hone_api.remote.sources import REMOTE_RULES, RemoteSource


class BaseModelSource(RemoteSource):
    """The base model: exactly one of `name`, `claim` and `uri`."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                require_exactly_one("name", "claim", "uri"),
                "set exactly one of name (a model on the hub), claim and uri",
            ),
            make_rule(
                "has(self.name) || !has(self.revision)",
                "revision belongs to a model on the hub: set name, or remove it",
            ),
            *REMOTE_RULES,
        )
    )

    name: HubName | None = Field(
        None, description="Name of a model on the hub.", examples=["meta-llama/Llama-2-7b-chat-hf"]
    )
    revision: Revision | None = Field(
        None,
        description="Branch, tag or commit on the hub; left out: main. The commit is kept in the artifact.",
        examples=["main"],
    )
    claim: ClaimPath | None = Field(
        None, description="Folder on a claim that holds the model as transformers saves it."
    )
    dtype: Dtype = Field(
        "auto", description="Type the weights are loaded as; auto: as they were saved.", examples=["bfloat16"]
    )
    trust_remote_code: bool = Field(
        False, description="Run code that comes with the model. It can do what the pod can."
    )


class ConfigMapKey(ApiModel):
    """One key of a ConfigMap in the object's own namespace; its ending names the format."""

    name: ObjectName = Field(description="Name of the ConfigMap.", examples=["faq"])
    key: DataKey = Field(
        description="Key whose value is the dataset, named as a file: jsonl, json, csv or txt.",
        examples=["train.jsonl"],
    )


DataColumn = Literal[
    "text",
    "prompt",
    "completion",
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "tools",
    "chat_template_kwargs",
]


class DatasetSource(RemoteSource):
    """The dataset: exactly one of `name`, `configMap`, `claim` and `uri`."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                require_exactly_one("name", "configMap", "claim", "uri"),
                "set exactly one of name (a dataset on the hub), configMap, claim and uri",
            ),
            make_rule(
                "has(self.name) || self.split == 'train'",
                "split belongs to a dataset on the hub, and files are all train: remove it, and name the files in path",
            ),
            make_rule(
                "has(self.name) || !(has(self.config) || has(self.revision))",
                "config and revision belong to a dataset on the hub: set name, or remove them",
            ),
            make_rule(
                "has(self.name) || !has(self.evalSplit)",
                "evalSplit belongs to a dataset on the hub, and files are all train: set evalFraction instead",
            ),
            make_rule(
                "!(has(self.evalSplit) && has(self.evalFraction))",
                "set evalSplit (a split to evaluate on) or evalFraction (a share of the rows), not both",
            ),
            *REMOTE_RULES,
        )
    )

    name: HubName | None = Field(
        None, description="Name of a dataset on the hub.", examples=["mlabonne/guanaco-llama2-1k"]
    )
    config: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="Configuration of a hub dataset; left out: its default.", examples=["default"]
    )
    revision: Revision | None = Field(
        None, description="Branch, tag or commit on the hub; left out: main.", examples=["main"]
    )
    split: Annotated[str, Field(min_length=1, max_length=255)] = Field(
        "train",
        description="Split to train on. Files on a claim or in a ConfigMap are all `train`.",
        examples=["train"],
    )
    config_map: ConfigMapKey | None = Field(None, description="A small dataset in a ConfigMap.")
    claim: ClaimPath | None = Field(
        None,
        description="A file, a folder or a glob on a claim: jsonl, json, csv, parquet or txt.",
        examples=[{"name": "data", "path": "train.parquet"}],
    )
    format: Literal["auto", "text", "prompt-completion", "messages"] = Field(
        "auto",
        description="What a row holds; auto: judged by its columns. messages are also `conversations` as ShareGPT "
        "spells them, and `instruction`, `input` and `output` as Alpaca does.",
        examples=["messages"],
    )
    columns: dict[DataColumn, Annotated[str, Field(min_length=1, max_length=255)]] = Field(
        {},
        max_length=12,
        description="The dataset's own column for each column that the format has.",
        examples=[{"prompt": "question", "completion": "answer"}],
    )
    chat_template: Annotated[str, Field(min_length=1, max_length=65_536)] | None = Field(
        None,
        description="Jinja template that turns messages into text, saved with the result; left out: the tokenizer's.",
    )
    max_samples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        None, description="Number of rows to train on, from the first; left out: all.", examples=[1000]
    )
    eval_split: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="Split of a hub dataset that is evaluated on.", examples=["test"]
    )
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Share of the rows that is kept out of training and evaluated on.", examples=[0.05]
    )

    @property
    def has_evaluation(self) -> bool:
        """Return whether there are rows to evaluate on."""
        return bool(self.eval_split or self.eval_fraction)


class DatasetEntry(DatasetSource):
    """One of several datasets: the fields of `spec.dataset`, and a weight."""

    weight: Annotated[float, Field(gt=0, le=1_000_000)] | None = Field(
        None,
        description="Share of the rows, relative to the other weights. Set it in all entries or in none: without "
        "weights the datasets follow each other.",
        examples=[0.7],
    )
