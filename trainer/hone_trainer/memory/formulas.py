"""Device memory of a training process, by formulas. Pure: Settings in, Estimate out; everything in bytes.

Weights and optimizer states take memory during all of training (mixed precision as Rajbhandari et al., ZeRO, arXiv
1910.02054, section 3, break it down, but in the dtypes that TRL and PEFT really use). On top come gradients,
activations and the loss, whose sum is largest at one of four moments of a step (`_moments`).

What a decoder layer saves for its backward pass follows Korthikanti et al. (arXiv 2205.05198, section 4) in method:
add up what each operation saves. The operations are those of transformers' Llama, Qwen 2 and Mixtral with SDPA
attention, which saves no scores (eager attention saves them), and of PEFT's LoRA layers. The loss is TRL's fused output
head (trl/kernels/chunked_logprob.py), which never holds the logits of all tokens.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from hone_api.artifacts.memory_estimate import Estimate

from hone_trainer.memory import optimizer_states
from hone_trainer.memory.inputs import MemorySettings

# Bytes of a parameter in NF4 with double quantization: an 8-bit scale for 64 parameters and a 32-bit one for 256 scales
# (Dettmers et al., QLoRA, arXiv 2305.14314, section 3).
FOUR_BITS = 0.5 + (8 + 32 / 256) / 64 / 8

# Tile of TRL's fused output head: TOKEN_CHUNK_SIZE and _CHUNKED_LOGPROB_CHUNK_SIZE.
TOKEN_CHUNK, VOCABULARY_CHUNK = 4096, 32768

# Allowed for the HIP context, kernels and BLAS work spaces of a process, and again for RCCL where there are several. An
# assumption: it was not measured.
RUNTIME = 1024**3

# Allowed for memory that torch's caching allocator holds but can't use, as a share of the rest. An assumption.
FRAGMENTATION = 0.05

Peak = Literal["loss", "backward", "embedding", "step"]


@dataclass(frozen=True)
class _Moment:
    """Memory that is held only at one moment of a step, in bytes."""

    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    logits: float = 0
    communication: float = 0

    @property
    def sum(self) -> float:
        return self.gradients + self.optimizer + self.activations + self.logits + self.communication


def estimate_memory(settings: MemorySettings) -> Estimate:
    """Return the peak memory of one process."""
    weights = _estimate_weights(settings)
    state_bytes = 0 if settings.pages and not settings.adapter else _count_state_bytes(settings)
    moments = _estimate_moments(settings)
    peak = max(get_args(Peak), key=lambda name: moments[name].sum)
    most = moments[peak]
    parts = {
        "weights": round(weights),
        "gradients": round(most.gradients),
        "optimizer_states": round(state_bytes + most.optimizer),
        "activations": round(most.activations),
        "logits": round(most.logits),
        "communication": round(most.communication),
    }
    computed = sum(parts.values())
    runtime = (RUNTIME if settings.processes == 1 else 2 * RUNTIME) if settings.device == "gpu" else 0
    allowance = round(runtime + FRAGMENTATION * computed)
    return Estimate(
        processes=settings.processes,
        batch=settings.batch,
        length=settings.length,
        peak=peak,
        allowance=allowance,
        total=computed + allowance,
        **parts,
    )


def count_host_state_bytes(settings: MemorySettings) -> int:
    """Return the bytes of the optimizer's states that a process keeps in the host's memory."""
    return _count_state_bytes(settings) if settings.pages else 0


def count_host_only_bytes(settings: MemorySettings) -> int:
    """Return the bytes of those states that the estimate does not contain. An adapter's count on the device as well."""
    return 0 if settings.adapter else count_host_state_bytes(settings)


def _count_state_bytes(settings: MemorySettings) -> int:
    return optimizer_states.get_optimizer_memory(settings.optimizer).count_state_bytes(
        _count_trained_here(settings), _get_trained_bytes(settings)
    )


def _estimate_moments(settings: MemorySettings) -> dict[str, _Moment]:
    """Return the memory that varies within a step, at each moment when the sum can be largest."""
    model = settings.architecture
    all_gradients = float(_count_trained_here(settings) * _get_trained_bytes(settings))
    before = all_gradients if settings.accumulation else 0.0
    full = settings.method == "full"
    head = _count_head_parameters(settings) * _get_trained_bytes(settings) / _count_shards(settings) if full else 0.0
    first = model.widest * _get_trained_bytes(settings) / _count_shards(settings)
    layer = _estimate_layer_saved(settings)
    inputs = settings.tokens * model.hidden * _get_residual_bytes(settings)
    saved = model.layers * (inputs if settings.checkpointing else layer)
    recomputed = layer if settings.checkpointing else 0.0
    working = _estimate_layer_working(settings)
    tail = _estimate_tail_saved(settings)
    embedding = inputs + (model.embedding * _get_trained_bytes(settings) if full and model.tied else 0)
    buckets = _estimate_buckets(settings)
    around_layer = buckets + _estimate_gathered(settings, 2) + _estimate_reduced(settings)
    last_layer = _Moment(
        max(before, head) + first if full else all_gradients,
        activations=saved + recomputed + working + _estimate_mask(settings),
        communication=around_layer,
    )
    others = (model.embedding * (not model.tied) + model.layer) * _get_trained_bytes(settings) / _count_shards(settings)
    first_layer = _Moment(
        max(before, all_gradients - others) + first if full else all_gradients,
        activations=(inputs if settings.checkpointing else 0) + layer + working + _estimate_mask(settings),
        communication=around_layer,
    )
    step = optimizer_states.get_optimizer_memory(settings.optimizer).count_step_bytes(
        _count_trained_here(settings), _get_trained_bytes(settings)
    )
    return {
        "loss": _Moment(
            before,
            activations=saved + tail + _estimate_mask(settings) + _estimate_cast_cache(settings),
            logits=_estimate_loss(settings),
            communication=buckets + _estimate_gathered(settings, 1),
        ),
        "backward": max(last_layer, first_layer, key=lambda moment: moment.sum),
        "embedding": _Moment(all_gradients, activations=embedding if full else 0, communication=buckets),
        "step": _Moment(all_gradients, step, communication=buckets),
    }


def _get_compute_bytes(settings: MemorySettings) -> int:
    return 2 if settings.mixed else settings.architecture.weight_bytes


def _get_residual_bytes(settings: MemorySettings) -> int:
    """Return the size of the hidden states' values between layers: they have the dtype of embeddings and norms.

    PEFT's prepare_model_for_kbit_training makes those float32 for qlora; FSDP2's mixed precision casts them.
    """
    if settings.method == "qlora":
        return 4
    return 2 if settings.sharding == "fsdp" and settings.mixed else settings.architecture.weight_bytes


def _get_trained_bytes(settings: MemorySettings) -> int:
    """Return the size of a trained parameter.

    Adapters are float32 (PEFT), bfloat16 with qlora (SFTTrainer); accelerate makes what FSDP2 trains float32 under
    mixed precision.
    """
    if settings.method == "qlora":
        return 2
    if settings.method == "lora" or (settings.sharding == "fsdp" and settings.mixed):
        return 4
    return settings.architecture.weight_bytes


def _count_shards(settings: MemorySettings) -> int:
    return settings.processes if settings.sharding == "fsdp" else 1


def _count_trained_here(settings: MemorySettings) -> int:
    return -(-settings.trainable // _count_shards(settings))


def _count_head_parameters(settings: MemorySettings) -> int:
    return settings.architecture.head


def _estimate_weights(settings: MemorySettings) -> float:
    model, shards = settings.architecture, _count_shards(settings)
    adapter = settings.adapter.parameters * _get_trained_bytes(settings) if settings.adapter else 0
    if settings.method == "qlora":  # accelerate leaves 4-bit weights out of FSDP2's sharding
        return model.linear * FOUR_BITS + ((model.total - model.linear) * 4 + adapter) / shards
    of_base = _get_trained_bytes(settings) if settings.method == "full" else model.weight_bytes
    return (model.total * of_base + adapter) / shards


def _estimate_buckets(settings: MemorySettings) -> float:
    """Return DDP's buckets: copies of all gradients (DistributedDataParallel's gradient_as_bucket_view is off)."""
    several = settings.sharding == "ddp" and settings.processes > 1
    return settings.trainable * _get_trained_bytes(settings) if several else 0


def _estimate_gathered(settings: MemorySettings, layers: int) -> float:
    """Return the full weights that FSDP2 holds in addition to shards: of `layers` layers, and of the output head."""
    model = settings.architecture
    if _count_shards(settings) == 1:
        return 0
    layer = model.layer - (model.matrices if settings.method == "qlora" else 0)
    adapter = settings.adapter.layer_parameters if settings.adapter else 0
    return (layers * (layer + adapter) + model.head) * _get_compute_bytes(settings)


def _estimate_reduced(settings: MemorySettings) -> float:
    """Return a layer's full gradients, before and within FSDP2's reduce-scatter."""
    if _count_shards(settings) == 1 or settings.method != "full":
        return 0
    return 2 * settings.architecture.layer * _get_compute_bytes(settings)


def _casts_frozen(settings: MemorySettings) -> bool:
    """Return whether autocast saves a half-precision copy of each weight that the backward pass uses."""
    return settings.mixed and settings.method != "qlora" and _get_residual_bytes(settings) == 4


def _estimate_cast_cache(settings: MemorySettings) -> float:
    """Return autocast's copies of trained float32 weights, held during the forward pass, also with checkpointing."""
    if settings.method == "full" and settings.checkpointing and _casts_frozen(settings):
        return settings.architecture.layers * settings.architecture.matrices * 2
    return 0


def _estimate_mask(settings: MemorySettings) -> float:
    """Return SDPA's mask, as booleans and as the resulting bias: for rows of different lengths, or packed documents."""
    if settings.packed:
        return 3 * settings.tokens**2
    return 3 * settings.batch * settings.length**2 if settings.batch > 1 else 0


def _estimate_layer_saved(settings: MemorySettings) -> float:
    """Return what one decoder layer saves for its backward pass."""
    model, adapter, compute = settings.architecture, settings.adapter, _get_compute_bytes(settings)
    residual = _get_residual_bytes(settings)
    trained = settings.method == "full"
    out = 4 if settings.method == "qlora" else compute  # bitsandbytes casts its output back to the input's dtype
    widths = 4 * model.query_width if settings.batch > 1 else 2 * (model.query_width + model.key_value_width)
    attention = compute * widths
    token: float = model.norm_width * (4 + (residual if trained else 0)) + attention + 4 * model.heads
    if trained:
        # the input that q, k and v share, and gate and up share, is cast for each of them
        copies = 1 if residual == compute else 5 / 2
        token += copies * 2 * compute * model.hidden
    if adapter and adapter.targets:
        dropout = {"gpu": 1, "cpu": 4}[settings.device] if adapter.dropout else 0
        token += adapter.inputs * (compute + dropout) + adapter.targets * adapter.rank * compute
        token += 2 * compute * adapter.outputs if adapter.dora else 0
    between = (3 if model.gated else 1) * out * model.intermediate
    product = compute * model.intermediate if trained or (adapter and adapter.experts) else 0
    if model.experts:
        routed = 2 * compute * model.hidden if product else compute * model.hidden
        token += model.experts_per_token * (between + product + routed)
    else:
        token += between + (product if trained else 0)
    weights = 0.0
    if _casts_frozen(settings):
        weights += 2 * model.matrices
    if adapter:
        weights += compute * (adapter.experts + (adapter.layer_parameters if settings.method == "lora" else 0))
    return settings.tokens * token + weights + _count_scores(settings) * (4 + 2 * compute)


def _count_scores(settings: MemorySettings) -> float:
    """Return how many scores eager attention saves: their softmax in float32, its input and its output."""
    if not settings.eager:
        return 0
    row = settings.tokens if settings.packed else settings.length
    return settings.tokens * row * settings.architecture.heads


def _estimate_layer_working(settings: MemorySettings) -> float:
    """Return what else a layer's backward pass holds: the gradients around the widest part, the MLP. Fitted."""
    model, compute = settings.architecture, _get_compute_bytes(settings)
    width = model.intermediate * (model.experts_per_token or 1)
    factor = 2 if settings.method == "qlora" else 1
    token = (
        compute * factor * (5 * (width + model.hidden) if settings.method == "full" else 4 * width + 2 * model.hidden)
    )
    experts = settings.adapter.experts * compute / 3 if settings.adapter else 0
    dequantized = model.widest * 2 if settings.method == "qlora" else 0
    dora = 8 * model.widest if settings.adapter and settings.adapter.dora else 0
    return settings.tokens * token + experts + dequantized + dora + _count_scores(settings) * 8


def _estimate_tail_saved(settings: MemorySettings) -> float:
    """Return the last norm, and the tokens' hidden states from which the loss is computed."""
    residual = _get_residual_bytes(settings)
    norm = 4 + (residual if settings.method == "full" else 0)
    return settings.tokens * settings.architecture.hidden * (norm + 2 * residual)


def _estimate_loss(settings: MemorySettings) -> float:
    """Return the memory of TRL's fused output head, forward and backward; with full_logits, of the logits of all
    tokens.
    """
    model, compute, tokens = settings.architecture, _get_compute_bytes(settings), settings.tokens
    hidden = tokens * model.hidden
    if settings.full_logits:
        return tokens * model.vocabulary * (compute + 12) + 2 * hidden * compute
    head_bytes = _get_residual_bytes(settings)
    rows, columns = min(tokens, TOKEN_CHUNK), min(model.vocabulary, VOCABULARY_CHUNK)
    tile = rows * VOCABULARY_CHUNK * compute
    weight_chunk = columns * model.hidden * compute if head_bytes != compute else 0
    of_hidden = hidden * (4 + head_bytes)
    of_weight = 4 * _count_head_parameters(settings) if settings.method == "full" else 0
    cast_weight = of_weight / 4 * head_bytes if head_bytes != 4 else 0
    if settings.device == "gpu":
        return tile + weight_chunk + of_hidden + of_weight + cast_weight
    in_torch = max(33 * rows * columns, 4 * columns * (rows + model.hidden))
    return tile + weight_chunk + of_hidden + of_weight + max(cast_weight, in_torch)
