"""Read MANIFEST: the FineTuneJob, and the folders of its claims and ConfigMaps.

Input is the command line's options; output is `Inputs`, which the stage before training uses to find models and data.
--claim and --config-map name the folders, which are mounted volumes in a pod.
"""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hone_api.common import ClaimPath
from hone_api.finetunejobs.sources import ConfigMapKey
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import DATASET_NOT_FOUND, INVALID_SPEC, HoneError, Reason
from hone_api.schema.manifests import load_documents
from pydantic import ValidationError

from hone_trainer.runtime.options import Options, PlanOptions


@dataclass(frozen=True)
class Inputs:
    """The job, and the locations of the files that it names."""

    job: FineTuneJob
    claims: dict[str, Path]
    config_maps: dict[str, Path]
    inline_config_maps: dict[str, dict[str, str]]
    scratch: TemporaryDirectory[str] = field(default_factory=TemporaryDirectory)

    def claim_path(self, claim: ClaimPath, where: str, missing: Reason) -> Path:
        """Return the path of a claim's file, folder or glob. Raises InvalidSpec, or `missing` when its folder is
        missing.
        """
        if claim.name not in self.claims:
            raise HoneError(
                INVALID_SPEC,
                f"{where}.name is {claim.name}, and no folder was given for that claim",
                remedy=f"Outside a cluster, say where it is: --claim {claim.name}=FOLDER.",
            )
        root = self.claims[claim.name]
        if not root.is_dir():
            raise HoneError(missing, f"{where}.name is {claim.name}, and its folder {root} does not exist")
        return root / (claim.path or "")

    def config_map_file(self, reference: ConfigMapKey) -> Path:
        """Return the file that holds the value of a ConfigMap's key. Raises DatasetNotFound."""
        if reference.name in self.config_maps:
            folder = self.config_maps[reference.name]
        elif reference.name in self.inline_config_maps:
            folder = Path(self.scratch.name) / reference.name
            folder.mkdir(exist_ok=True)
            for key, value in self.inline_config_maps[reference.name].items():
                (folder / Path(key).name).write_text(value, encoding="utf-8")
        else:
            raise HoneError(
                DATASET_NOT_FOUND,
                f"spec.dataset.configMap.name is {reference.name}, and there is no such ConfigMap",
                remedy="Put the ConfigMap into the same file, or apply it to the job's namespace.",
            )
        path = folder / reference.key
        if path.is_file():
            return path
        keys = sorted(entry.name for entry in folder.glob("[!.]*")) if folder.is_dir() else []
        raise HoneError(
            DATASET_NOT_FOUND,
            f"spec.dataset.configMap.key is {reference.key}, and ConfigMap {reference.name} has "
            + (", ".join(keys) or "no keys"),
        )


def load(options: Options | PlanOptions) -> Inputs:
    """Read and check MANIFEST. Raises HoneError InvalidSpec naming field and value."""
    if isinstance(options, Options):
        refuse_what_is_not_utf8("--output", options.output)
    for name, folder in options.claims.items():
        refuse_what_is_not_utf8(f"--claim {name}", folder)
    documents = load_documents(options.manifest)
    jobs = [document for document in documents if document.get("kind") == "FineTuneJob"]
    if len(jobs) != 1:
        raise HoneError(
            INVALID_SPEC,
            f"{options.manifest} holds {len(jobs)} FineTuneJobs where one should be",
            remedy="Keep one FineTuneJob in the file; ConfigMaps may stand beside it.",
        )
    try:
        job = FineTuneJob.model_validate(jobs[0])
    except ValidationError as error:
        raise HoneError(INVALID_SPEC, f"{options.manifest}: {_first(error)}") from None
    config_maps = dict(
        _config_map(options.manifest, document) for document in documents if document.get("kind") == "ConfigMap"
    )
    return Inputs(job, options.claims, options.config_maps, config_maps)


def refuse_what_is_not_utf8(option: str, folder: Path) -> None:
    """Raise HoneError InvalidSpec for a folder whose path is not UTF-8, which Arrow and tokenizers can't open."""
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        raise HoneError(
            INVALID_SPEC,
            f"{option} is {folder}, whose path is not UTF-8",
            remedy="Rename the folder: the libraries that read and write there take UTF-8 only.",
        ) from None


def _config_map(manifest: Path, document: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return name and data of a ConfigMap. Raises HoneError InvalidSpec for what `kubectl apply` would refuse."""
    metadata, data = document.get("metadata"), document.get("data")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise HoneError(INVALID_SPEC, f"{manifest}: a ConfigMap has no metadata.name", remedy="Give it one.")
    if not isinstance(data, dict | None):
        raise HoneError(
            INVALID_SPEC,
            f"{manifest}: ConfigMap {name}: data is {data!r:.60} where keys and their text should be",
            remedy="Write data: {train.jsonl: |- …}.",
        )
    for key, value in (data or {}).items():
        if not isinstance(value, str):
            raise HoneError(
                INVALID_SPEC,
                f"{manifest}: ConfigMap {name}: data[{key}] is {value!r:.60} where a string should be",
                remedy=f"Write it as text: put it in quotes, or below `{key}: |-`.",
            )
    return name, data or {}


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    field = ".".join(str(part) for part in detail["loc"])
    value = detail["input"]
    shown = "" if isinstance(value, dict) else f" is {value!r}"
    return f"{field}{shown}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
