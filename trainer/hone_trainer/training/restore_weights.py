"""Restore a checkpoint's weights into a model, under any of the names that they were saved with.

transformers saves the weights of some architectures under the names that their files on the hub have: the experts of a
mixture one by one, the output head of GPT-NeoX as embed_out. Trainer's own resume looks up the names of the modules,
and skips all others without an error: those weights would start from the base model again.
"""

from pathlib import Path
from typing import Any

from hone_api.reasons import INTERNAL_ERROR, HoneError
from safetensors import safe_open
from transformers import PreTrainedModel


def restore_renamed(network: PreTrainedModel, folder: Path) -> None:
    """Load a checkpoint's weights as from_pretrained does, if any of them is saved under another name than the model's.

    Raises HoneError InternalError when the checkpoint lacks a weight.
    """
    own = network.state_dict().keys()
    if _list_saved_names(folder) <= own:
        return
    kind: Any = type(network)
    saved, report = kind.from_pretrained(folder, dtype=network.dtype, output_loading_info=True)
    if report["missing_keys"]:
        lacks = f"lacks {len(report['missing_keys'])} weights, such as {min(report['missing_keys'])}"
        raise HoneError(INTERNAL_ERROR, f"The checkpoint in {folder} {lacks}")
    network.load_state_dict(saved.state_dict())


def _list_saved_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names.update(file.keys())
    return names
