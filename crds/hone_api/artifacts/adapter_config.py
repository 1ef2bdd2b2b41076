"""Read adapter_config.json, which PEFT writes and others may have changed: the fields that matter, with their types.

PEFT itself checks no types: a rank that is a string ends in a TypeError in unrelated code. So every program that loads
an adapter reads its configuration here first.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hone_api import strictjson
from hone_api.artifacts.manifest import read_content
from hone_api.reasons import ARTIFACT_CORRUPT, HoneError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# No matrix of a model has more rows than this, and PEFT would make the matrices before it compares them.
LARGEST_RANK = 2**20

Rank = Annotated[int, Field(ge=1, le=LARGEST_RANK)]
Names = list[str] | str | None


class AdapterConfig(BaseModel):
    """The kind and shape of an adapter. The fields and their defaults are PEFT's; other fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None

    r: Rank = 8
    lora_alpha: float = 8
    lora_dropout: float = 0
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: Names = None
    target_parameters: list[str] | None = None
    exclude_modules: Names = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: Names = None
    layer_replication: list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    fan_in_fan_out: bool | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    lora_bias: bool | None = None
    megatron_config: dict[str, Any] | None = None

    @property
    def largest_rank(self) -> int:
        """Return the largest rank of any layer."""
        return max([self.r, *(self.rank_pattern or {}).values()])


OF_ALL_KINDS = ("peft_type", "base_model_name_or_path", "revision")


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read adapter_config.json in an adapter's folder. Raises HoneError ArtifactCorrupt naming the file and the field.

    For an adapter that is not LoRA, only the fields that all kinds have are read.
    """
    path = folder / ADAPTER_CONFIG
    remedy = "Save the adapter again with PEFT, or restore the file from where the adapter came from."
    try:
        content = strictjson.parse(read_content(path.resolve()))  # in the hub's cache every file is a link
        if isinstance(content, dict) and content.get("peft_type") != "LORA":
            content = {name: value for name, value in content.items() if name in OF_ALL_KINDS}
        return AdapterConfig.model_validate(content)
    except OSError as error:
        problem = f"can't be read: {error.strerror}"
    except ValidationError as error:
        first = error.errors()[0]
        names = [part for part in first["loc"] if part in AdapterConfig.model_fields or not isinstance(part, str)]
        field = str(names[0]) if names else ""
        found = repr(content[field])[:60] if field else type(content).__name__
        problem = f"has the field {field} {found}: {first['msg']}" if field else f"is not an object, but a {found}"
    except (ValueError, RuntimeError) as error:  # pathlib's for links in a circle is a RuntimeError
        problem = f"is not an adapter's configuration: {error}"
    raise HoneError(ARTIFACT_CORRUPT, f"{path} {problem}", remedy=remedy)


def require_adapter_weights(folder: Path) -> None:
    """Raise HoneError ArtifactCorrupt unless the folder holds an adapter's weights.

    PEFT takes a folder without weights as the name of a repository on the hub, and would load the weights there.
    """
    if not any(os.path.isfile(folder / name) for name in ADAPTER_WEIGHTS):
        remedy = "Save the adapter again with PEFT, or restore the file from where the adapter came from."
        raise HoneError(ARTIFACT_CORRUPT, f"{folder} has neither {' nor '.join(ADAPTER_WEIGHTS)}", remedy=remedy)
