"""Read MANIFEST: the FineTuneJob, and the folders of its claims, ConfigMaps and Secrets.

Input is the command line's options; output is `JobInputs`, which the stage before training uses to find models and
data. --claim, --config-map and --secret name the folders, which are mounted volumes in a pod.
"""

from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hone_api.common import ClaimPath
from hone_api.finetunejobs.sources import ConfigMapKey
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.io.terminal import hide_url_credentials
from hone_api.reasons import DATASET_NOT_FOUND, INVALID_SPEC, HoneError, Reason
from hone_api.remote.sources import CaConfigMapKey
from hone_api.schema.manifests import load_documents
from pydantic import ValidationError

from hone_trainer.runtime.options import PlanOptions, RunOptions


@dataclass(frozen=True)
class JobInputs:
    """The job, and the locations of the files that it names."""

    job: FineTuneJob
    claims: dict[str, Path]
    config_maps: dict[str, Path]
    inline_config_maps: dict[str, dict[str, str]]
    secrets: dict[str, Path] = field(default_factory=dict)
    inline_secrets: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    scratch: TemporaryDirectory[str] = field(default_factory=TemporaryDirectory)

    def find_claim_path(self, claim: ClaimPath, where: str, missing: Reason) -> Path:
        """Return the path of a claim's file, folder or glob. Raises InvalidSpec, or `missing` when its folder is
        missing.
        """
        if claim.name not in self.claims:
            raise HoneError(
                INVALID_SPEC,
                f"{where}.name is {claim.name}, and no folder was given for that claim",
                remedy=f"Outside a cluster, give its folder: --claim {claim.name}=FOLDER.",
            )
        root = self.claims[claim.name]
        if not root.is_dir():
            raise HoneError(missing, f"{where}.name is {claim.name}, and its folder {root} does not exist")
        return root / (claim.path or "")

    def read_secret_values(self, name: str) -> dict[str, str] | None:
        """Return the keys of a Secret with their values; None where it is not given, as outside a cluster."""
        if name not in self.secrets:
            return self.inline_secrets.get(name)
        return read_secret(self.secrets[name])

    def find_config_map_file(
        self,
        reference: ConfigMapKey | CaConfigMapKey,
        where: str = "spec.dataset.configMap",
        missing: Reason = DATASET_NOT_FOUND,
    ) -> Path:
        """Return the file that holds the value of a ConfigMap's key. Raises HoneError `missing`."""
        if reference.name in self.config_maps:
            folder = self.config_maps[reference.name]
        elif reference.name in self.inline_config_maps:
            folder = Path(self.scratch.name) / reference.name
            folder.mkdir(exist_ok=True)
            for key, value in self.inline_config_maps[reference.name].items():
                (folder / Path(key).name).write_text(value, encoding="utf-8")
        else:
            raise HoneError(
                missing,
                f"{where}.name is {reference.name}, and there is no such ConfigMap",
                remedy="Put the ConfigMap into the same file, or apply it to the job's namespace.",
            )
        path = folder / reference.key
        if path.is_file():
            return path
        keys = sorted(entry.name for entry in folder.glob("[!.]*")) if folder.is_dir() else []
        raise HoneError(
            missing,
            f"{where}.key is {reference.key}, and ConfigMap {reference.name} has " + (", ".join(keys) or "no keys"),
        )


def read_secret(folder: Path) -> dict[str, str]:
    """Return the keys of a Secret that is mounted in a folder, with their values."""
    # The kubelet's own files begin with two dots, and .dockerconfigjson is a key.
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith("..")]
    return {path.name: path.read_text(errors="replace") for path in files}


def load_inputs(options: RunOptions | PlanOptions) -> JobInputs:
    """Read and check MANIFEST. Raises HoneError InvalidSpec naming field and value."""
    if isinstance(options, RunOptions):
        refuse_non_utf8_folder("--output", options.output)
    for name, folder in options.claims.items():
        refuse_non_utf8_folder(f"--claim {name}", folder)
    documents = load_documents(options.manifest)
    jobs = [document for document in documents if document.get("kind") == "FineTuneJob"]
    if len(jobs) != 1:
        raise HoneError(
            INVALID_SPEC,
            f"{options.manifest} holds {len(jobs)} FineTuneJobs where one should be",
            remedy="Keep one FineTuneJob in the file; it may also hold ConfigMaps.",
        )
    try:
        job = FineTuneJob.model_validate(jobs[0])
    except ValidationError as error:
        raise HoneError(INVALID_SPEC, f"{options.manifest}: {_describe_first_error(error)}") from None
    config_maps = dict(
        _parse_config_map(options.manifest, document) for document in documents if document.get("kind") == "ConfigMap"
    )
    secrets = dict(
        _parse_secret(options.manifest, document) for document in documents if document.get("kind") == "Secret"
    )
    return JobInputs(job, options.claims, options.config_maps, config_maps, options.secrets, secrets)


def refuse_non_utf8_folder(option: str, folder: Path) -> None:
    """Raise HoneError InvalidSpec for a folder whose path is not UTF-8, which Arrow and tokenizers can't open."""
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        raise HoneError(
            INVALID_SPEC,
            f"{option} is {folder}, whose path is not UTF-8",
            remedy="Rename the folder: the libraries that read and write there take UTF-8 only.",
        ) from None


def _parse_config_map(manifest: Path, document: dict[str, Any], kind: str = "ConfigMap") -> tuple[str, dict[str, str]]:
    """Return name and data of a ConfigMap or Secret.

    Raises HoneError InvalidSpec for what `kubectl apply` would refuse.
    """
    metadata, data = document.get("metadata"), document.get("data")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise HoneError(INVALID_SPEC, f"{manifest}: a {kind} has no metadata.name", remedy="Give it one.")
    if not isinstance(data, dict | None):
        shown = "no object" if kind == "Secret" else f"{data!r:.60}"
        raise HoneError(
            INVALID_SPEC,
            f"{manifest}: {kind} {name}: data is {shown} where keys and their text should be",
            remedy="Write data: {train.jsonl: |- …}.",
        )
    for key, value in (data or {}).items():
        if not isinstance(value, str):
            shown = "no text" if kind == "Secret" else f"{value!r:.60}"
            raise HoneError(
                INVALID_SPEC,
                f"{manifest}: {kind} {name}: data[{key}] is {shown} where a string should be",
                remedy=f"Write it as text: put it in quotes, or below `{key}: |-`.",
            )
    return name, data or {}


def _parse_secret(manifest: Path, document: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return name and values of a Secret. Raises HoneError InvalidSpec for what `kubectl apply` would refuse."""
    name, values = _parse_config_map(manifest, document, "Secret")
    try:
        decoded = {key: b64decode(value, validate=True).decode() for key, value in values.items()}
    except ValueError:
        raise HoneError(
            INVALID_SPEC,
            f"{manifest}: Secret {name}: data has a value that is not text in base64",
            remedy="Write the values as they are, below stringData.",
        ) from None
    plain = _parse_config_map(manifest, document | {"data": document.get("stringData")}, "Secret")[1]
    return name, decoded | plain


def _describe_first_error(error: ValidationError) -> str:
    detail = error.errors()[0]
    field = ".".join(str(part) for part in detail["loc"])
    value = detail["input"]
    shown = "" if isinstance(value, dict) else hide_url_credentials(f" is {value!r}")
    return f"{field}{shown}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
