"""`spec.training`: the fields of TRL's SFTConfig, camelCased, and the defaults of missing ones."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from hone_api.common import ApiModel, declare_rules, make_rule
from hone_api.finetunejobs.sft_fields import OPTIMIZERS, SFT_CONFIG_FIELDS

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Natural = Annotated[int, Field(ge=0, le=1_000_000_000)]
Ratio = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Word = Annotated[str, Field(min_length=1, max_length=128)]
OptionalBool = bool | None
Optimizer = Literal[*OPTIMIZERS]  # type: ignore[valid-type]

# Fields of SFTConfig that other parts of the manifest decide, or that are deprecated spellings.
HONE_SETS = frozenset(
    "output_dir save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint "
    "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint load_best_model_at_end "
    "metric_for_best_model greater_is_better push_to_hub hub_token hub_private_repo hub_model_id hub_strategy "
    "hub_always_push hub_revision report_to disable_tqdm log_level log_level_replica logging_strategy eval_strategy "
    "do_train do_eval do_predict local_rank deepspeed fsdp fsdp_config parallelism_config accelerator_config "
    "model_init_kwargs dataset_kwargs trust_remote_code chat_template_path dataset_text_field trackio_space_id "
    "trackio_bucket_id trackio_static_space_id project gradient_checkpointing gradient_checkpointing_kwargs".split()
)


def _field(description: str, *, example: Any) -> Any:
    return Field(None, description=description, examples=[example])


class TypedArguments(ApiModel):
    """The fields of SFTConfig that most runs set, each with its bounds."""

    model_config = ConfigDict(
        json_schema_extra=declare_rules(
            make_rule(
                "!(has(self.bf16) && self.bf16 && has(self.fp16) && self.fp16)",
                "set bf16 or fp16, not both: bf16 where the device has it",
            )
        )
    )

    num_train_epochs: Annotated[float, Field(gt=0, le=10_000)] | None = _field(
        "How often the full dataset is used. TRL's default: 3.", example=1
    )
    max_steps: Positive | None = _field("Number of optimizer steps; overrides numTrainEpochs.", example=500)
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = _field(
        "Rows a device takes per step. TRL's default: 8.", example=4
    )
    per_device_eval_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = _field(
        "Rows a device takes per evaluation step. TRL's default: 8.", example=4
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65_536)] | None = _field(
        "Batches whose gradients are added up before an optimizer step. TRL's default: 1.", example=8
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = _field(
        "Initial learning rate. TRL's default: 2e-5; for LoRA, about ten times that is usual.", example=2e-4
    )
    lr_scheduler_type: (
        Literal[
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "constant",
            "constant_with_warmup",
            "inverse_sqrt",
            "reduce_lr_on_plateau",
            "cosine_with_min_lr",
            "cosine_warmup_with_min_lr",
            "warmup_stable_decay",
        ]
        | None
    ) = _field(
        "Learning-rate schedule. `constant` ignores warmupSteps: use `constant_with_warmup`. TRL's default: linear.",
        example="cosine",
    )
    warmup_steps: NonNegative | None = _field(
        "Steps of linear warm-up; a value below 1 is a share of all steps. TRL's default: 0.", example=0.03
    )
    weight_decay: Ratio | None = _field("Weight decay of AdamW. TRL's default: 0.", example=0.001)
    max_grad_norm: NonNegative | None = _field("Gradients are clipped to this norm. TRL's default: 1.", example=0.3)
    optim: Optimizer | None = _field(
        "Optimizer, by transformers' name; one with 8bit in its name keeps its state in a quarter of the memory. "
        "TRL's default: adamw_torch_fused.",
        example="paged_adamw_8bit",
    )
    adam_beta1: Ratio | None = _field("Beta 1 of Adam. TRL's default: 0.9.", example=0.9)
    adam_beta2: Ratio | None = _field("Beta 2 of Adam. TRL's default: 0.999.", example=0.95)
    adam_epsilon: Ratio | None = _field("Epsilon of Adam. TRL's default: 1e-8.", example=1e-8)
    seed: Natural | None = _field("Seed of everything random. TRL's default: 42.", example=42)
    data_seed: Natural | None = _field("Seed of the data's order; left out: `seed`.", example=42)
    bf16: OptionalBool = _field("bfloat16 autocast. TRL's default: on where the device has it.", example=True)
    fp16: OptionalBool = _field("float16 autocast. TRL's default: off.", example=False)
    tf32: OptionalBool = _field("TF32 matrix products, where the device has them.", example=True)
    activation_checkpointing: OptionalBool = _field(
        "Recompute activations in the backward pass: less memory, about 20 % slower. TRL's default: on.", example=False
    )
    torch_compile: OptionalBool = _field("Compile the model with torch.compile. TRL's default: off.", example=True)
    full_determinism: OptionalBool = _field("Deterministic kernels, slower. TRL's default: off.", example=True)
    logging_steps: Annotated[float, Field(gt=0, le=1e9)] | None = _field(
        "Steps between two log entries; below 1, a share of all steps. TRL's default: 10.", example=10
    )
    eval_steps: Annotated[float, Field(gt=0, le=1e9)] | None = _field(
        "Steps between two evaluations on the evaluation split, if there is one; left out: at the end.", example=100
    )
    max_length: Annotated[int, Field(ge=2, le=10_000_000)] | None = _field(
        "Tokens a row is cut to. TRL's default: 1024.", example=2048
    )
    packing: OptionalBool = _field("Pack several rows into one of maxLength tokens. TRL's default: off.", example=True)
    packing_strategy: Literal["bfd", "bfd_split", "wrapped"] | None = _field(
        "How rows are packed. TRL's default: bfd.", example="bfd"
    )
    completion_only_loss: OptionalBool = _field(
        "Loss on the completion only. TRL's default: on for prompt-completion rows.", example=True
    )
    assistant_only_loss: OptionalBool = _field(
        "Loss on the assistant's turns only; needs a template with generation markers. TRL's default: off.",
        example=True,
    )
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] | None = _field(
        "Order of the rows. TRL's default: random.", example="group_by_length"
    )
    dataloader_num_workers: Annotated[int, Field(ge=0, le=256)] | None = _field(
        "Processes that load data. TRL's default: 0.", example=4
    )
    dataset_num_proc: Annotated[int, Field(ge=1, le=256)] | None = _field("Processes that tokenize.", example=8)
    neftune_noise_alpha: NonNegative | None = _field(
        "NEFTune's noise on the embeddings. TRL's default: none.", example=5
    )
    label_smoothing_factor: Ratio | None = _field("Label smoothing. TRL's default: 0.", example=0.1)
    eos_token: Word | None = _field("End-of-sequence token; left out: the tokenizer's.", example="<|im_end|>")
    pad_token: Word | None = _field(
        "Padding token; left out: the tokenizer's, else the end-of-sequence one.", example="</s>"
    )


# What `extra` may hold: its key on the wire, and the field of SFTConfig that it is.
EXTRA_FIELDS = {
    to_camel(name): name
    for name in sorted(SFT_CONFIG_FIELDS)
    if name not in HONE_SETS and name not in TypedArguments.model_fields
}

ExtraField = Literal[*EXTRA_FIELDS]  # type: ignore[valid-type]


class TrainingArguments(TypedArguments):
    """TRL's SFTConfig, camelCased: https://huggingface.co/docs/trl/sft_trainer#trl.SFTConfig"""

    profile: Literal["auto", "none"] = Field(
        "auto",
        description="auto: what is left out is chosen for this model, data and device, such that training is fast and "
        "what is learned stays the same; none: TRL's defaults.",
        examples=["none"],
    )
    parallelism: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="How several GPUs share the work. ddp: each has the full model; fsdp: each has a part of every "
        "layer (FSDP2), for models that one GPU can't hold; auto: fsdp when the memory estimate requires it, else ddp.",
        examples=["fsdp"],
    )
    extra: dict[ExtraField, Any] = Field(
        {},
        description="Any further field of SFTConfig, camelCased, with its value as it stands there.",
        examples=[{"lrSchedulerKwargs": {"min_lr": 1e-6}}],
    )

    def get_sft_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of SFTConfig that the user wrote, including `extra`."""
        typed = self.model_dump(exclude_none=True, include=set(TypedArguments.model_fields))
        return typed | {EXTRA_FIELDS[name]: value for name, value in self.extra.items()}
