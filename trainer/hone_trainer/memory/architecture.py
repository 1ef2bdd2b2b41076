"""Read a model's shape and an adapter's size from its config: modules on the meta device, no weights.

`build_meta_model` makes the model that all checks without weights use; `read_architecture` and `measure_adapter` return
the plain numbers of `inputs`.
"""

import warnings
from typing import Any

import torch
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.reasons import INVALID_SPEC, MODEL_INVALID, HoneError
from peft import PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hone_trainer.memory.inputs import AdapterShape, Architecture
from hone_trainer.models import lora_targets

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Kinds of models in which tokens attend to later tokens, and whose layers do not record that.
READ_BOTH_WAYS = ("xlnet", "cpmant")


class UnestimatedError(Exception):
    """The reason why the memory of a model is not estimated."""


def build_meta_model(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the model of a config on the meta device: every module and parameter, without their memory.

    Raises HoneError ModelInvalid for a config that is not a causal language model's.
    """
    try:
        with torch.device("meta"):
            auto: Any = AutoModelForCausalLM
            made: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        kind = getattr(config, "model_type", None) or "without a model_type"
        text = " ".join(str(error).split())
        raise HoneError(
            MODEL_INVALID, f"config.json describes a {kind}, which is no causal language model to transformers: {text}"
        ) from error
    _refuse_two_way(made)
    return made


def _refuse_two_way(outline: PreTrainedModel) -> None:
    """Raise HoneError ModelInvalid for an encoder: its tokens attend to those that they are trained to predict.

    Encoders that can also be decoders, such as BERT, record in their layers which of both they are.
    """
    config: Any = outline.config
    if any(getattr(module, "is_decoder", None) is False for module in outline.modules()):
        setting = "is_encoder: true" if hasattr(config, "is_encoder") else "is_decoder: false, or leaves it out"
        found = f"config.json has {setting}, so that {type(outline).__name__} is an encoder"
    elif config.model_type in READ_BOTH_WAYS:
        found = f"config.json describes a {config.model_type}"
    else:
        return
    raise HoneError(
        MODEL_INVALID,
        f"{found}: each token reads the tokens that follow it, also those that it is trained to predict",
        remedy="Use a decoder, such as Llama or Qwen, as the base model.",
    )


def read_architecture(network: PreTrainedModel) -> Architecture:
    """Return the shape of a model from `build_meta_model`. Raises UnestimatedError where no formula covers it."""
    config: Any = network.config.get_text_config()
    if carries_state(network):
        raise UnestimatedError(
            "its layers carry state from one token to the next, and the formulas are those of attention"
        )
    try:
        return _read_architecture(network, config)
    except (AttributeError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        text = " ".join(str(error).split())
        raise UnestimatedError(
            f"config.json of a {config.model_type} lacks a size of a usual decoder: {text}"
        ) from error


def carries_state(network: PreTrainedModel) -> bool:
    """Return whether layers other than attention connect the tokens, as in Mamba and in hybrid models."""
    return bool(getattr(network, "_is_stateful", False)) or any(
        isinstance(part, torch.nn.Conv1d) for part in network.modules()
    )


def _read_architecture(network: PreTrainedModel, config: Any) -> Architecture:
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    intermediate = int(
        getattr(config, "moe_intermediate_size", None)
        or getattr(config, "intermediate_size", None)
        or getattr(config, "ffn_dim", None)
        or getattr(config, "n_inner", None)
        or 4 * hidden
    )
    head_size = int(getattr(config, "head_dim", None) or hidden // heads)
    layers = find_decoder_layers(network)
    largest = max(layers, key=count_parameters)
    own: Any = network
    head, embedding = own.get_output_embeddings(), own.get_input_embeddings()
    matrices = [parameter.numel() for parameter in largest.parameters() if parameter.dim() > 1]
    query = heads * head_size
    key_value = int(getattr(config, "num_key_value_heads", None) or heads) * head_size
    if getattr(config, "kv_lora_rank", None):  # multi-head latent attention: heads have keys of their own
        query = key_value = heads * int(config.qk_nope_head_dim + config.qk_rope_head_dim)
    return Architecture(
        total=count_parameters(network),
        layers=len(layers),
        layer=count_parameters(largest),
        matrices=sum(matrices),
        widest=max(matrices),
        linear=sum(
            int(module.weight.numel())
            for module in network.modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        ),
        head=head.weight.numel() if head is not None else 0,
        embedding=embedding.weight.numel(),
        tied=head is not None and head.weight is embedding.weight,
        hidden=hidden,
        query_width=query,
        key_value_width=key_value,
        heads=heads,
        intermediate=intermediate,
        gated=any("gate" in name for name, _ in largest.named_parameters()),
        norm_width=sum(
            _get_norm_width(name, module, hidden, query, key_value) for name, module in largest.named_modules()
        ),
        vocabulary=head.weight.shape[0] if head is not None else int(config.vocab_size),
        experts=_count_experts(config),
        experts_per_token=int(getattr(config, "num_experts_per_tok", None) or 0) if _count_experts(config) else 0,
        weight_bytes=BYTES.get(str(getattr(network.config, "dtype", None)).removeprefix("torch."), 4),
    )


def measure_adapter(network: PreTrainedModel, spec: FineTuneJobSpec) -> AdapterShape:
    """Return what the spec's LoRA adds to a model from `build_meta_model`, which it changes.

    Raises HoneError InvalidSpec when a target does not fit the model, Unestimated when it has no decoder layers.
    """
    base = count_parameters(network)
    adapted = apply_adapter(network, spec)
    lora: Any = adapted.active_peft_config
    trainable, total = adapted.get_nb_trainable_parameters()
    largest = max(find_decoder_layers(network), key=lambda layer: sum(_list_trained_sizes(layer)))
    wrapped: list[Any] = [module for module in largest.modules() if isinstance(module, LoraLayer)]
    linear = [module for module in wrapped if not isinstance(module, ParamWrapper)]
    return AdapterShape(
        parameters=int(total) - base,
        trainable=int(trainable),
        layer_parameters=sum(_list_trained_sizes(largest)),
        targets=len(linear),
        inputs=sum(int(module.in_features) for module in linear),
        outputs=sum(int(module.out_features) for module in linear),
        rank=int(lora.r),
        dropout=bool(lora.lora_dropout),
        experts=sum(module.get_param().numel() for module in wrapped if module not in linear),
        dora=bool(lora.use_dora),
    )


def apply_adapter(network: PreTrainedModel, spec: FineTuneJobSpec) -> PeftModel:
    """Add the spec's adapter to a model from `build_meta_model`. Raises HoneError InvalidSpec when a target does not
    fit it.
    """
    lora = lora_targets.make_lora_config(spec, None, network)
    assert lora, "method full has no adapter"
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_peft_model(network, lora)  # type: ignore[return-value,unused-ignore]
    except ValueError as error:
        raise HoneError(
            INVALID_SPEC,
            f"spec.lora is refused by PEFT: {' '.join(str(error).split())}",
            remedy="Name linear layers that the model has, or set lora.targetModules to all-linear.",
        ) from error


def find_decoder_layers(network: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder's layers: the list of modules with the most parameters."""
    lists = [list(module) for module in network.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    if not lists:
        raise UnestimatedError(f"{type(network).__name__} has no list of decoder layers")
    return max(lists, key=lambda layers: sum(count_parameters(layer) for layer in layers))


def count_parameters(module: torch.nn.Module) -> int:
    """Return how many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def _list_trained_sizes(module: torch.nn.Module) -> list[int]:
    return [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]


def _get_norm_width(name: str, module: torch.nn.Module, hidden: int, query: int, key_value: int) -> int:
    if "norm" not in type(module).__name__.lower():
        return 0
    last = name.rpartition(".")[2]
    return query if last == "q_norm" else key_value if last == "k_norm" else hidden


def _count_experts(config: Any) -> int:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((int(getattr(config, name)) for name in names if getattr(config, name, None)), 0)
