"""The Triton kernels of training and serving, compiled for Instinct GPUs as their launches would compile them.

Triton's package for any Linux holds its AMD back end and a linker, so that code objects are made without a GPU. A
stand-in for the driver names the GPU, and the code that launches a kernel runs on CPU tensors: the types, alignments
and constants are those of the real launch. Nothing is executed, so that no number is checked here.
"""

import contextlib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import trl.kernels
from packaging.requirements import Requirement
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy
from trl.trainer.utils import add_fused_lm_head

# MI200, MI300 and MI350.
ARCHITECTURES = ("gfx90a", "gfx942", "gfx950")
WAVEFRONT = 64
# A workgroup, on each of them.
MOST_THREADS = 1024
# Of a workgroup's memory on gfx90a and gfx942; gfx950 has 160 KiB.
MOST_SHARED_BYTES = 64 * 1024
TYPES = (torch.bfloat16, torch.float16, torch.float32)
SMALL = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
# What the base image brings.
FOREIGN = {"torch", "triton"}
# Modules with kernels, and why neither training nor serving on an AMD GPU launches them.
NOT_LAUNCHED = {"bitsandbytes.backends.triton": "only its back end for Intel's GPUs imports it"}


class Driver:
    """Names a GPU for Triton: device n is ARCHITECTURES[n]."""

    def __init__(self) -> None:
        self.device = 0

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("hip", ARCHITECTURES[self.device], WAVEFRONT)


@pytest.fixture
def compile_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., dict[JITFunction, Any]]]:
    """Run code that launches kernels: compile_for(architecture, launch) returns what its launches compiled."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    driver = Driver()
    compiled: dict[JITFunction, Any] = {}
    really = JITFunction.run

    def compile_only(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled[kernel] = really(kernel, *args, grid=grid, warmup=True, **options)
        check(compiled[kernel], kernel.fn.__qualname__, ARCHITECTURES[driver.device])
        return compiled[kernel]

    monkeypatch.setattr(JITFunction, "run", compile_only)
    for name in ("trl.kernels.chunked_logprob", "trl.kernels.chunked_divergence", "trl.trainer.utils"):
        monkeypatch.setattr(f"{name}._use_triton", lambda device: True)

    def run(architecture: str, launch: Callable[[], None]) -> dict[JITFunction, Any]:
        driver.device = ARCHITECTURES.index(architecture)
        compiled.clear()
        launch()
        return dict(compiled)

    triton.runtime.driver.set_active(driver)
    yield run
    triton.runtime.driver._active = None


def check(code: Any, name: str, architecture: str) -> None:
    """Assert that a GPU of the architecture can load and launch it."""
    what = f"{name} for {architecture}"
    assert code.asm["hsaco"].startswith(b"\x7fELF"), what
    assembly = code.asm["amdgcn"]
    assert f'.amdgcn_target "amdgcn-amd-amdhsa--{architecture}' in assembly, what
    assert code.metadata.warp_size == WAVEFRONT, what
    assert code.metadata.num_warps * WAVEFRONT <= MOST_THREADS, what
    assert code.metadata.shared <= MOST_SHARED_BYTES, what
    spilled = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", assembly)
    assert spilled, what
    assert set(spilled) == {"0"}, f"{what} spills registers"


def train_a_step(dtype: torch.dtype, soft_cap: float | None = None) -> None:
    """Run forward and backward of SFTTrainer's loss head, which it adds to every model."""
    if soft_cap:
        model: Any = Gemma2ForCausalLM(Gemma2Config(**SMALL, **HEADS, final_logit_softcapping=soft_cap))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS))
    model = model.to(dtype)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    tokens = torch.arange(16).reshape(2, 8)
    model(input_ids=tokens, labels=tokens, fused_lm_head=True).loss.backward()


def score(dtype: torch.dtype) -> None:
    """Compute log probabilities and entropies of logits, with and without a mask."""
    for mask in (None, torch.ones(2, 8, dtype=torch.bool)):
        logits = torch.randn(2, 8, 320, dtype=dtype, requires_grad=True)
        found, entropy = selective_log_softmax_and_entropy(logits, torch.zeros(2, 8, dtype=torch.long), 0.7, mask)
        (found.sum() + entropy.sum()).backward()


def distill(dtype: torch.dtype) -> None:
    """Compute the divergence of two models, in each of its three kinds."""
    for beta in (0.0, 0.5, 1.0):
        hidden = torch.randn(8, 32, dtype=dtype, requires_grad=True)
        weight = torch.randn(320, 32, dtype=dtype)
        divergence, _ = ChunkedDivergenceFunction.apply(
            hidden, weight, None, hidden.detach(), weight, None, beta, 1.0, 1.0, None, 1.0, None
        )
        divergence.sum().backward()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_of_every_precision_compiles(architecture: str, compile_for: Callable[..., Any]) -> None:
    for dtype in TYPES:
        for soft_cap in (None, 30.0):
            launched = compile_for(architecture, partial(train_a_step, dtype, soft_cap))
            names = {kernel.fn.__name__ for kernel in launched}
            assert names == {"_forward_kernel", "_backward_kernel"}


def test_every_kernel_of_trl_compiles(compile_for: Callable[..., Any]) -> None:
    """Fail for a kernel that no launch above reaches: add the code that launches it."""
    found = {kernel for name in modules(trl.kernels) for kernel in kernels(name)}
    assert found
    for architecture in ARCHITECTURES:
        compiled: dict[JITFunction, Any] = {}
        for launch in (train_a_step, score, distill):
            compiled |= compile_for(architecture, partial(launch, torch.bfloat16))
        reached = set(compiled) | {kernel for launched in compiled for kernel in called(launched)}
        assert {kernel.fn.__qualname__ for kernel in found - reached} == set()


def modules(package: Any) -> list[str]:
    return [found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]


def kernels(module: str) -> list[JITFunction]:
    """Return the Triton functions that a module defines."""
    values = vars(importlib.import_module(module)).values()
    return [value for value in values if isinstance(value, JITFunction) and value.fn.__module__ == module]


def called(kernel: JITFunction) -> list[JITFunction]:
    """Return the Triton functions that a kernel calls."""
    values = [kernel.fn.__globals__.get(name) for name in kernel.fn.__code__.co_names]
    return [value for value in values if isinstance(value, JITFunction)]


def test_no_other_package_of_the_runtime_image_has_triton_kernels() -> None:
    """Fail for a package with kernels: compile them above, or name them in NOT_LAUNCHED with the reason."""
    known = (trl.kernels.__name__, *NOT_LAUNCHED)
    found = [name for name in modules_with_kernels() if not name.startswith(known)]
    assert found == []


def test_the_kernels_of_bitsandbytes_are_for_another_maker() -> None:
    package = Path(str(distribution("bitsandbytes").locate_file("bitsandbytes")))
    importing = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"^\s*(from|import)\s.*triton import ops|kernels_(4bit|optim|8bit_quant)$", file.read_text(), re.M)
    }
    assert importing - {"backends/triton/ops.py"} == {"backends/xpu/ops.py"}


def modules_with_kernels() -> list[str]:
    """Return the modules with Triton kernels, of all packages that the trainer and the server need."""
    needed: dict[str, Distribution] = {}
    waiting = requirements(distribution("hone"), {"trainer", "server"})
    while waiting:
        requirement = waiting.pop()
        if requirement.name in needed or requirement.name in FOREIGN:
            continue
        with contextlib.suppress(PackageNotFoundError):  # for another system or Python
            needed[requirement.name] = distribution(requirement.name)
            waiting += requirements(needed[requirement.name], requirement.extras)
    assert {"trl", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "fastapi"} <= needed.keys()
    return [
        str(file).removesuffix(".py").replace("/", ".")
        for package in needed.values()
        for file in package.files or []
        if file.suffix == ".py" and b"triton.jit" in Path(str(file.locate())).read_bytes()
    ]


def requirements(package: Distribution, extras: set[str]) -> list[Requirement]:
    """Return the requirements of a package, with some of its extras."""
    found = [Requirement(text) for text in package.requires or []]
    chosen = [*extras, ""]
    return [each for each in found if not each.marker or any(each.marker.evaluate({"extra": name}) for name in chosen)]
