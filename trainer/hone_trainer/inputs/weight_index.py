"""The files of a model's weights, by the names and the index that transformers reads. Does not import torch.

`models.weight_files` reads their headers before a job trains, and `model_download` looks whether a served model is
complete.
"""

import json
from pathlib import Path

from hone_api.reasons import MODEL_INVALID, HoneError

# Files that hold or list the weights, in the order in which transformers looks for them.
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def find_weight_files(folder: Path, what: str) -> list[Path]:
    """Return the files with the weights that transformers reads. Raises HoneError ModelInvalid where one is missing."""
    first = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if first is None:
        raise HoneError(MODEL_INVALID, f"{what}, which holds no weights: it has none of the files {', '.join(NAMES)}")
    if first.suffix != ".json":
        return [first]
    try:
        shards = sorted(set(json.loads(first.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise HoneError(MODEL_INVALID, f"{what}, whose {first.name} can't be read: {why}") from error
    lacking = [shard for shard in shards if not (folder / shard).is_file()]
    if lacking:
        count = f"{len(lacking)} of {len(shards)} files that {first.name} names"
        raise HoneError(MODEL_INVALID, f"{what}, which lacks {count}, such as {lacking[0]}")
    return [folder / shard for shard in shards]
