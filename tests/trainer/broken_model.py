"""A model whose own code fails during training: a failure for which the catalogue has no reason."""

import json
import shutil
from pathlib import Path
from typing import Any

CODE = """
from transformers import LlamaForCausalLM


def fail(*given):
    raise ZeroDivisionError("this model is broken")


class BrokenForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(fail)
"""


def make_broken_model(tiny: Path, folder: Path) -> dict[str, Any]:
    """Save a copy of the model in `tiny` with code of its own, and return spec.model for it, on the claim `claim`."""
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoModelForCausalLM": "modeling_broken.BrokenForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": own, "architectures": ["BrokenForCausalLM"]}))
    (folder / "modeling_broken.py").write_text(CODE)
    return {"claim": {"name": "claim", "path": folder.name}, "trustRemoteCode": True}
