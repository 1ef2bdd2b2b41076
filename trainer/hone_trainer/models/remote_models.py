"""The objects of a model in a store that loading it may need.

A bucket often holds the same weights in several formats, and what else a training has left.
"""

from dataclasses import replace
from pathlib import PurePosixPath

from hone_api.layout import MANIFEST, MERGED, MODEL

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


def _enter_artifact(objects: list[RemoteObject]) -> list[RemoteObject]:
    """Return the files of the model in an artifact of Hone, under their names in its folder; else all objects."""
    names = {found.name for found in objects}
    for part in (MERGED, MODEL):
        if {MANIFEST, f"{part}/config.json"} <= names:
            inner = [found for found in objects if found.name.startswith(f"{part}/")]
            return [replace(found, name=found.name.removeprefix(f"{part}/")) for found in inner]
    return objects


def _choose_by_suffix(objects: list[RemoteObject], suffixes: tuple[str, ...]) -> list[RemoteObject]:
    return [
        found
        for found in objects
        if PurePosixPath(found.name).parent.as_posix() in (".", TEMPLATES)
        and found.name.endswith(suffixes)
        and not found.name.startswith((".", "consolidated"))
    ]
