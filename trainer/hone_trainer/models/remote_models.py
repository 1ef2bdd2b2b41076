"""The objects of a model in a store that loading it may need.

A bucket often holds the same weights in several formats, and what else a training has left.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from hone_api.artifacts.adapter_config import ADAPTER_CONFIG
from hone_api.layout import ADAPTER, MANIFEST, MERGED, MODEL

from hone_trainer.inputs.model_files import TEMPLATES, TEXTS, WEIGHTS
from hone_trainer.remote.objects import RemoteObject

# Files with code are text as well.
_TEXTS = (*TEXTS, ".py", ".md")
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".gguf")


def choose_files(objects: list[RemoteObject]) -> list[RemoteObject]:
    """Return the files of the model: of its weights, safetensors if there are any."""
    own = _choose_by_suffix(_enter_artifact(objects), _TEXTS + WEIGHTS)
    has_safetensors = any(found.name.endswith(".safetensors") for found in own)
    return [found for found in own if not (has_safetensors and found.name.endswith(_OTHER_FORMATS))]


def choose_texts(objects: list[RemoteObject]) -> list[RemoteObject]:
    """Return the files of the model except its weights."""
    return _choose_by_suffix(_enter_artifact(objects), _TEXTS)


def choose_served_model(objects: list[RemoteObject]) -> list[RemoteObject]:
    """Return what an engine needs of a model: of an artifact of Hone also its manifest, and the tree as it is."""
    return _choose_part(objects, (MERGED, MODEL), "config.json") or choose_files(objects)


def choose_served_adapter(objects: list[RemoteObject]) -> list[RemoteObject]:
    """Return what an engine needs of an adapter: of an artifact of Hone also its manifest, and the tree as it is."""
    return _choose_part(objects, (ADAPTER,), ADAPTER_CONFIG) or choose_files(objects)


def _choose_part(objects: list[RemoteObject], parts: Sequence[str], config: str) -> list[RemoteObject]:
    part = _find_part(objects, parts, config)
    return [found for found in objects if part and (found.name == MANIFEST or found.name.startswith(f"{part}/"))]


def _find_part(objects: list[RemoteObject], parts: Sequence[str], config: str) -> str | None:
    """Return the folder, among those of `parts`, that an artifact of Hone has; None where the objects are none."""
    names = {found.name for found in objects}
    return next((part for part in parts if {MANIFEST, f"{part}/{config}"} <= names), None)


def _enter_artifact(objects: list[RemoteObject]) -> list[RemoteObject]:
    """Return the files of the model in an artifact of Hone, under their names in its folder; else all objects."""
    part = _find_part(objects, (MERGED, MODEL), "config.json")
    if not part:
        return objects
    inner = [found for found in objects if found.name.startswith(f"{part}/")]
    return [replace(found, name=found.name.removeprefix(f"{part}/")) for found in inner]


def _choose_by_suffix(objects: list[RemoteObject], suffixes: tuple[str, ...]) -> list[RemoteObject]:
    return [
        found
        for found in objects
        if PurePosixPath(found.name).parent.as_posix() in (".", TEMPLATES)
        and found.name.endswith(suffixes)
        and not found.name.startswith((".", "consolidated"))
    ]
