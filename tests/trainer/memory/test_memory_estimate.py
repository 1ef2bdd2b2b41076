"""The memory estimate against torch's own tracker: real architectures, fewer layers, real operations, no weights.

One training step of TRL's, PEFT's and transformers' own code runs on fake tensors, which are only shapes. Frozen
parameters make MemTracker fail (it registers gradient hooks on all), so its hooks are left out: the sum needs none.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_trainer.memory import plan
from hone_trainer.memory.architecture import apply_adapter, build_meta_model
from hone_trainer.memory.formulas import estimate_memory
from peft import PeftModel
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config
from trl.trainer.utils import add_fused_lm_head

TOLERANCE = 0.15
CPU = torch.device("cpu")


class Tracker(MemTracker):
    """MemTracker for models with frozen parameters."""

    def _track_module_params_and_buffers(self, module: torch.nn.Module, install_grad_hooks: bool = True) -> Any:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


def peak(network: PreTrainedModel | PeftModel, batch: int, length: int, *, checkpointing: bool, shards: int = 1) -> int:
    """Return the bytes at the peak of a step of SFTTrainer with AdamW, from the second step on.

    `network` is on the meta device. With `shards`, the peak is of one of that many processes with FSDP2, and then
    without the optimizer's step, in which DTensor computes shapes on tensors of the full size, which the tracker takes
    for memory.
    """
    base = network.get_base_model() if isinstance(network, PeftModel) else network
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    if checkpointing:
        network.gradient_checkpointing_enable()
        if isinstance(network, PeftModel):
            network.enable_input_require_grads()
    network.train()
    mesh = processes(shards) if shards > 1 else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialize(network)
        if mesh:
            shard(base, mesh)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        tokens = torch.zeros((batch, length), dtype=torch.long)
        tracker = Tracker()
        tracker.track_external(network, optimizer)
        with tracker:
            with torch.autocast("cpu", torch.bfloat16):
                out: Any = network(input_ids=tokens, labels=tokens, fused_lm_head=True, use_cache=False)
            loss = -out.log_probs.sum() / out.label_mask.sum()
            del out
            loss.backward()
            if shards == 1:
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
        return int(tracker.get_tracker_snapshot("peak")[CPU]["Total"])


def materialize(network: torch.nn.Module) -> None:
    """Give a model on the meta device fake tensors on the CPU. Shared weights stay shared."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=CPU)
                    made[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CPU)


def processes(count: int) -> DeviceMesh:
    """Make a mesh of fake processes: this is the first one, and communication only creates its buffers."""
    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    return init_device_mesh("cpu", (count,))


def shard(network: Any, mesh: DeviceMesh) -> None:
    """Wrap a decoder in FSDP2 as accelerate does (accelerate.utils.fsdp_utils.fsdp2_prepare_model)."""
    half = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    kwargs: dict[str, Any] = {"mesh": mesh, "mp_policy": half}
    for layer in network.model.layers:
        fully_shard(layer, **kwargs)
    fully_shard(network.model.embed_tokens, **kwargs)
    fully_shard([network.model.norm, network.lm_head], reshard_after_forward=False, **kwargs)
    fully_shard(network, **kwargs)


MODELS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama_2_7b": partial(
        LlamaConfig, hidden_size=4096, intermediate_size=11008, num_attention_heads=32, vocab_size=32000
    ),
    "llama_31_8b": partial(
        LlamaConfig,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
    "qwen_25_05b": partial(
        Qwen2Config,
        hidden_size=896,
        intermediate_size=4864,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "qwen_25_7b": partial(
        Qwen2Config,
        hidden_size=3584,
        intermediate_size=18944,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    ),
    "mixtral_8x7b": MixtralConfig,
}


def make_config(model: str, layers: int, dtype: torch.dtype = torch.bfloat16) -> PreTrainedConfig:
    config = MODELS[model](num_hidden_layers=layers)
    config.dtype = dtype
    return config


def estimate(config: PreTrainedConfig, job: FineTuneJobSpec, **several: Any) -> int:
    """Return the estimated bytes of a process; `several`: how many there are, and how they share the model."""
    return estimate_memory(plan.make_memory_plan(job, build_meta_model(config), **several).settings).computed


def spec(method: str, batch: int, length: int, checkpointing: bool) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(
        {
            "model": {"name": "some/model"},
            "dataset": {"name": "some/data"},
            "method": method,
            "resources": {"gpus": 0},  # the tracker's tensors are on the CPU, where TRL's loss is made of torch's parts
            "training": {
                "perDeviceTrainBatchSize": batch,
                "maxLength": length,
                "activationCheckpointing": checkpointing,
            },
        }
    )


# Architecture, layers, method, activation checkpointing, batch, length, dtype of the weights.
CASES = [
    ("llama_2_7b", 2, "lora", True, 1, 2048, torch.bfloat16),
    ("llama_2_7b", 2, "lora", False, 4, 1024, torch.bfloat16),
    ("llama_2_7b", 2, "full", True, 2, 2048, torch.bfloat16),
    ("llama_2_7b", 2, "full", False, 1, 4096, torch.bfloat16),
    ("llama_2_7b", 2, "full", True, 1, 2048, torch.float32),
    ("llama_2_7b", 2, "lora", False, 1, 2048, torch.float32),
    ("llama_31_8b", 2, "lora", True, 2, 4096, torch.bfloat16),
    ("llama_31_8b", 2, "full", False, 2, 1024, torch.bfloat16),
    ("qwen_25_05b", 2, "lora", False, 8, 1024, torch.bfloat16),
    ("qwen_25_05b", 2, "full", True, 2, 1024, torch.bfloat16),
    ("qwen_25_05b", 2, "full", False, 8, 1024, torch.bfloat16),
    ("qwen_25_7b", 2, "lora", True, 4, 1024, torch.bfloat16),
    ("qwen_25_7b", 2, "full", False, 1, 4096, torch.bfloat16),
    ("mixtral_8x7b", 2, "lora", True, 1, 1024, torch.bfloat16),
    ("mixtral_8x7b", 1, "full", False, 4, 1024, torch.bfloat16),
]


def networks(config: PreTrainedConfig, job: FineTuneJobSpec) -> Any:
    network = build_meta_model(config)
    return network if job.method == "full" else apply_adapter(network, job)


@pytest.mark.parametrize(
    ("model", "layers", "method", "checkpointing", "batch", "length", "dtype"),
    CASES,
    ids=[f"{c[0]}-{c[2]}-{'ckpt' if c[3] else 'kept'}-{c[4]}x{c[5]}-{str(c[6])[6:]}" for c in CASES],
)
def test_the_peak_of_a_step_is_as_estimated(
    model: str, layers: int, method: str, checkpointing: bool, batch: int, length: int, dtype: torch.dtype
) -> None:
    config, job = make_config(model, layers, dtype), spec(method, batch, length, checkpointing)
    expected = estimate(config, job)
    found = peak(networks(config, job), batch, length, checkpointing=checkpointing)
    assert found == pytest.approx(expected, rel=TOLERANCE), f"tracked {found:,}, estimated {expected:,}"


def test_layers_add_up_to_the_full_model() -> None:
    """Check that memory grows by the same amount with each layer, so that a few layers represent all 32."""
    job = spec("lora", 1, 2048, checkpointing=False)
    one, three = (peak(networks(make_config("llama_2_7b", n), job), 1, 2048, checkpointing=False) for n in (1, 3))
    whole = one + (three - one) // 2 * 31
    assert whole == pytest.approx(estimate(make_config("llama_2_7b", 32), job), rel=TOLERANCE)


@pytest.fixture
def _no_processes_stay() -> Iterator[None]:
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_no_processes_stay")
@pytest.mark.parametrize(
    ("method", "checkpointing", "batch", "length", "processes"),
    [("full", True, 1, 1024, 4), ("full", True, 1, 1024, 64), ("full", False, 2, 2048, 8), ("lora", True, 1, 1024, 8)],
)
def test_the_peak_of_one_of_several_processes_with_fsdp2(
    method: str, checkpointing: bool, batch: int, length: int, processes: int
) -> None:
    config, job = make_config("llama_2_7b", 2), spec(method, batch, length, checkpointing)
    expected = estimate(config, job, processes=processes, sharding="fsdp")
    network = networks(config, job)
    if method == "full":
        network = network.float()  # as accelerate does with what is trained
    found = peak(network, batch, length, checkpointing=checkpointing, shards=processes)
    assert found == pytest.approx(expected, rel=TOLERANCE)
