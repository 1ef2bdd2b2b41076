"""FineTuneJob: a base model, a dataset, a method; the result is a verified artifact on a PersistentVolumeClaim."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from hone_api.artifact import ArtifactKind
from hone_api.common import (
    API_VERSION,
    DNS_LABEL_NAME,
    ApiModel,
    ClaimPath,
    ClaimReference,
    ComputeResources,
    Conditions,
    DataKey,
    HubName,
    ObjectName,
    PodOptions,
    Revision,
    SecretKey,
    exactly_one,
    rule,
    rules,
)
from hone_api.dtypes import Dtype
from hone_api.output import OutputOptions
from hone_api.reports import Parameters, Progress
from hone_api.training import TrainingArguments


class BaseModelSource(ApiModel):
    """The base model: exactly one of `name` and `claim`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(exactly_one("name", "claim"), "set exactly one of name (a model on the hub) and claim"),
            rule(
                "has(self.name) || !has(self.revision)",
                "revision belongs to a model on the hub: set name, or remove it",
            ),
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
    "text", "prompt", "completion", "messages", "conversations", "instruction", "input", "output", "system"
]


class DatasetSource(ApiModel):
    """The dataset: exactly one of `name`, `configMap` and `claim`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                exactly_one("name", "configMap", "claim"),
                "set exactly one of name (a dataset on the hub), configMap and claim",
            ),
            rule(
                "has(self.name) || self.split == 'train'",
                "split belongs to a dataset on the hub, and files are all train: remove it, and name the files in path",
            ),
            rule(
                "has(self.name) || !has(self.config)", "config belongs to a dataset on the hub: set name, or remove it"
            ),
            rule(
                "has(self.name) || !has(self.revision)",
                "revision belongs to a dataset on the hub: set name, or remove it",
            ),
            rule(
                "has(self.name) || !has(self.evalSplit)",
                "evalSplit belongs to a dataset on the hub, and files are all train: set evalFraction instead",
            ),
            rule(
                "!(has(self.evalSplit) && has(self.evalFraction))",
                "set evalSplit (a split to evaluate on) or evalFraction (a share of the rows), not both",
            ),
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
        max_length=9,
        description="The dataset's own column for each column that the format has.",
        examples=[{"prompt": "question", "completion": "answer"}],
    )
    chat_template: Annotated[str, Field(min_length=1, max_length=65_536)] | None = Field(
        None,
        description="Jinja template that turns messages into text, saved with the result; left out: the tokenizer's.",
    )
    max_samples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        None, description="Train on the first so many rows only.", examples=[1000]
    )
    eval_split: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="Split of a hub dataset that is evaluated on.", examples=["test"]
    )
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Share of the rows that is kept out of training and evaluated on.", examples=[0.05]
    )

    @property
    def has_evaluation(self) -> bool:
        """Whether there are rows to evaluate on."""
        return bool(self.eval_split or self.eval_fraction)


class LoraOptions(ApiModel):
    """PEFT's LoraConfig, camelCased: https://huggingface.co/docs/peft/package_reference/lora"""

    r: Annotated[int, Field(ge=1, le=4096)] = Field(16, description="Rank.", examples=[64])
    lora_alpha: Annotated[float, Field(gt=0, le=65_536)] = Field(
        32, description="Scale: the update is multiplied by loraAlpha / r.", examples=[16]
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout on the adapter's input.", examples=[0.1]
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases are trained as well.")
    target_modules: (
        Literal["all-linear"]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=255)]], Field(min_length=1, max_length=64)]
    ) = Field(
        "all-linear",
        description="`all-linear` (every linear layer but the output head), or a list of module names.",
        examples=[["q_proj", "v_proj"]],
    )
    use_rslora: bool = Field(False, description="Rank-stabilized LoRA: scale by loraAlpha / sqrt(r).")
    use_dora: bool = Field(
        False,
        description="DoRA: the magnitude of each weight is trained as well. Slower; vLLM serves it merged only.",
        examples=[True],
    )


class EvaluationOptions(ApiModel):
    """Prompts that the base model and the result are asked; the report shows both answers."""

    prompts: list[Annotated[str, Field(min_length=1, max_length=8192)]] = Field(
        min_length=1,
        max_length=50,
        description="Asked before and after training, through the chat template when there is one.",
        examples=[["What is Hone?", "How do I resume a job?"]],
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = Field(
        128, description="Tokens of an answer.", examples=[128]
    )


class CheckpointOptions(ApiModel):
    """When the state is saved that an interrupted run goes on from."""

    save_steps: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        50, description="Save a checkpoint every so many steps.", examples=[50]
    )
    save_total_limit: Annotated[int, Field(ge=1, le=1000)] = Field(
        2, description="Keep the newest so many checkpoints.", examples=[2]
    )


class CacheOptions(ApiModel):
    """Where downloads from the hub are kept."""

    claim: ClaimReference = Field(description="A claim that several jobs may share.", examples=[{"name": "hub-cache"}])


class TrainerResources(ComputeResources):
    """What the trainer's pod asks for."""

    gpus: Annotated[int, Field(ge=0, le=16)] = Field(
        1,
        description="GPUs, each with a process of its own that takes perDeviceTrainBatchSize rows a step; 0: train on "
        "the CPU.",
        examples=[1],
    )


_UNCHANGEABLE = "can't change after creation, since it decides the result: make a new FineTuneJob"


class FineTuneJobSpec(ApiModel):
    """What to train, on what, and how."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.method != 'full' || !has(self.lora)",
                "lora belongs to methods lora and qlora: remove it, or set method: lora",
            ),
            rule(
                "self.method != 'full' || !has(self.output) || !has(self.output.save)",
                "output.save belongs to methods lora and qlora, since method full always saves the whole model: "
                "remove it",
            ),
            rule(
                "self.method != 'qlora' || !has(self.model.dtype) || self.model.dtype == 'auto'",
                "model.dtype has no effect with method qlora, which loads the weights in 4 bits: remove it",
            ),
            rule(
                "self.method != 'qlora' || !has(self.training) || !has(self.training.fp16) || !self.training.fp16",
                "training.fp16 does not go with method qlora, whose adapters are bfloat16: remove it",
            ),
            rule(
                "!has(self.training) || !has(self.training.evalSteps) || has(self.dataset.evalFraction) || "
                "has(self.dataset.evalSplit)",
                "training.evalSteps needs rows to evaluate on: set dataset.evalFraction or evalSplit, or remove it",
            ),
            rule(
                "!has(self.training) || !has(self.training.lrSchedulerType) || "
                "self.training.lrSchedulerType != 'reduce_lr_on_plateau' || has(self.dataset.evalFraction) || "
                "has(self.dataset.evalSplit)",
                "training.lrSchedulerType reduce_lr_on_plateau follows the evaluation loss: set dataset.evalFraction "
                "or evalSplit, or take another schedule",
            ),
            rule(
                "!has(self.training) || !has(self.training.parallelism) || self.training.parallelism != 'fsdp' || "
                "(has(self.resources) && has(self.resources.gpus) && self.resources.gpus > 1)",
                "training.parallelism fsdp splits the model among several GPUs: set resources.gpus to 2 or more, or "
                "remove it",
            ),
            rule(
                "self.method != 'qlora' || !has(self.training) || !has(self.training.parallelism) || "
                "self.training.parallelism != 'fsdp'",
                "training.parallelism fsdp does not go with method qlora, whose weights in 4 bits can't be split: "
                "remove it, or set method: lora",
            ),
            rule("self.model == oldSelf.model", f"model {_UNCHANGEABLE}"),
            rule("self.dataset == oldSelf.dataset", f"dataset {_UNCHANGEABLE}"),
            rule("self.method == oldSelf.method", f"method {_UNCHANGEABLE}"),
            *(
                rule(
                    f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
                    f"{name} {_UNCHANGEABLE}",
                )
                for name in ("lora", "training", "evaluation", "output")
            ),
        )
    )

    model: BaseModelSource = Field(description="The base model.")
    dataset: DatasetSource = Field(description="The dataset.")
    method: Literal["lora", "qlora", "full"] = Field(
        "lora",
        description="What is trained: lora: an adapter; qlora: an adapter on the base in 4 bits, which needs a "
        "quarter of the memory for the base's weights; full: the whole model.",
        examples=["qlora"],
    )
    lora: LoraOptions | None = Field(None, description="The adapter, for methods lora and qlora.")
    training: TrainingArguments = Field(
        TrainingArguments(),
        description="The fields of TRL's SFTConfig, camelCased. What is left out has TRL's default.",
    )
    checkpoint: CheckpointOptions = Field(CheckpointOptions(), description="When checkpoints are saved.")
    evaluation: EvaluationOptions | None = Field(None, description="Prompts that are asked before and after training.")
    output: OutputOptions = Field(OutputOptions(), description="Where the artifact goes, and in what form.")
    resources: TrainerResources = Field(TrainerResources(), description="What the trainer's pod asks for.")
    cache: CacheOptions | None = Field(None, description="Where downloads are kept; left out: on the output claim.")
    token_secret: SecretKey | None = Field(None, description="The hub token, for gated and private repositories.")
    pod: PodOptions = Field(PodOptions(), description="Further settings of the trainer's pod.")
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = Field(
        3, description="How often a failed trainer is started anew. Interruptions and the user's mistakes don't count."
    )


class Artifact(ApiModel):
    """The artifact on its claim."""

    kind: ArtifactKind = Field(description="What was saved.")
    claim: str = Field(description="The PersistentVolumeClaim.")
    path: str = Field(description="Folder on the claim; manifest.json lies in it.")
    digest: str = Field(description="sha256 over the digests of all files, as in manifest.json.")
    base_model: str = Field(description="The base model.")
    base_revision: str | None = Field(None, description="The commit of the base model, when it came from the hub.")


Stage = Literal["Pending", "Preparing", "Training", "Saving", "Succeeded", "Failed"]


class FineTuneJobStatus(ApiModel):
    """What was observed."""

    stage: Stage | None = Field(None, description="Where the job is in its life.")
    conditions: Conditions = Field([], description="Accepted, Running, Succeeded, Failed.")
    progress: Progress | None = Field(None, description="How far training is.")
    parameters: Parameters | None = Field(None, description="How many parameters there are.")
    metrics: dict[str, float] = Field(
        {}, description="Final metrics, such as trainLoss, evalLossBefore, evalLossAfter and trainRuntime (seconds)."
    )
    artifact: Artifact | None = Field(None, description="The result, once it is complete.")
    start_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = Field(
        None, description="When the first trainer pod started."
    )
    completion_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = Field(
        None, description="When the job succeeded or failed."
    )
    observed_generation: int | None = Field(None, description="The metadata.generation that this status speaks of.")


class FineTuneJob(ApiModel):
    """A fine-tuning run of a large language model: a base model, a dataset, a method."""

    model_config = ConfigDict(json_schema_extra=rules(DNS_LABEL_NAME))

    PLURAL: ClassVar = "finetunejobs"
    SHORT_NAMES: ClassVar = ["ftj"]
    PRINTER_COLUMNS: ClassVar = [
        {"name": "Stage", "type": "string", "jsonPath": ".status.stage"},
        {"name": "Percent", "type": "integer", "jsonPath": ".status.progress.percent"},
        {"name": "Loss", "type": "number", "jsonPath": ".status.progress.loss"},
        {"name": "Left", "type": "integer", "jsonPath": ".status.progress.eta", "description": "Seconds left."},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]

    api_version: Literal[API_VERSION]  # type: ignore[valid-type]
    kind: Literal["FineTuneJob"]
    metadata: dict[str, Any]
    spec: FineTuneJobSpec = Field(description="What to train, on what, and how.")
    status: FineTuneJobStatus | None = Field(None, description="What was observed.")

    @property
    def name(self) -> str:
        return str(self.metadata["name"])
