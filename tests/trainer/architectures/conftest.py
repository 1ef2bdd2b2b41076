"""Tiny models of the table's architectures, and runs that train them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_table import Architecture
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="session")
def make_architecture(claim: Path) -> Callable[[Architecture], Path]:
    """Save the tiny model of an architecture on the claim, once: make_architecture(architecture)."""

    def make(architecture: Architecture) -> Path:
        folder = claim / "architectures" / architecture.name
        if not folder.is_dir():
            torch.manual_seed(0)
            config = architecture.make_config()
            config.initializer_range = 0.1  # large enough that answers depend on the prompt
            network: Any = AutoModelForCausalLM.from_config(config)
            network.save_pretrained(folder)
            AutoTokenizer.from_pretrained(claim / "tiny").save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def train_architecture(
    make_architecture: Callable[[Architecture], Path], job: Callable[..., dict[str, Any]], train: Callable[..., Any]
) -> Callable[..., Any]:
    """Run a job on the tiny model of an architecture: train_architecture(architecture, root, **spec)."""

    def run(architecture: Architecture, root: Path, *, command: str = "run", **spec: Any) -> Any:
        make_architecture(architecture)
        model = {"claim": {"name": "claim", "path": f"architectures/{architecture.name}"}}
        spec.setdefault("checkpoint", {"saveSteps": 2})
        spec["training"] = {"maxSteps": 3, "maxLength": 64, **spec.get("training", {})}
        return train(job(model=model, **spec), output=root, command=command)

    return run


@pytest.fixture
def forget_the_end() -> Callable[[Path, int], None]:
    """Reset an output to its state after the checkpoint of a step: forget_the_end(output, step)."""

    def forget(output: Path, step: int) -> None:
        for name in ("manifest.json", "adapter", "merged", "model", "report.json", "report.html"):
            path = output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for folder in (output / "checkpoints").glob("step-*"):
            if folder.name != f"step-{step:08d}":
                shutil.rmtree(folder)

    return forget
