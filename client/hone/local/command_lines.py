"""The arguments of the trainer and of the embedded engine on this machine."""

from pathlib import Path
from typing import Any

from hone_api.layout import EMBEDDED_TOOL_PARSERS
from hone_api.reasons import ARTIFACT_MISSING, INVALID_SPEC, MODEL_NOT_FOUND, HoneError

from hone import notices
from hone.specs import documents

# Fields that change the API for clients but have no effect here, and what to do instead.
LEFT_OUT = {
    "apiKeySecret": "Put a key that clients must send into the variable HONE_API_KEY.",
    "reasoningParser": "The embedded engine returns what a model thinks as a part of its text.",
    "extraArgs": "They are for the engine in the cluster; `hone-server --help` shows those of the one here.",
}


def make_trainer_arguments(
    command: str, file: Path, folder: Path, claims: dict[str, str], *, verbose: bool
) -> list[str]:
    """Return the trainer's command line for `run` or `prepare`."""
    arguments = [command, str(file), "--output", str(folder), *make_claim_options(claims)]
    return [*arguments, "--verbose"] if verbose else arguments


def make_claim_options(claims: dict[str, str]) -> list[str]:
    """Return the folders of claims as options of the trainer and `hone run`."""
    return [argument for name, folder in claims.items() for argument in ("--claim", f"{name}={folder}")]


def make_engine_arguments(target: Path, claims: dict[str, str], jobs: dict[str, str]) -> list[str]:
    """Return the engine's arguments: a given folder, or the models of an InferenceService, found in folders here."""
    if target.is_dir():
        return [str(target)]
    if not target.exists():
        raise HoneError(
            ARTIFACT_MISSING, f"{target} does not exist", remedy="Give a folder of `hone run`, or a manifest."
        )
    spec = documents.load_only("InferenceService", target)["spec"]
    model = spec["model"]
    arguments = [model["name"] if model.get("name") else str(_find_folder(model, claims, jobs, "spec.model"))]
    if model.get("revision"):
        arguments += ["--revision", model["revision"]]
    for index, source in enumerate(spec.get("adapters") or []):
        folder = _find_folder(source, claims, jobs, f"spec.adapters[{index}]")
        arguments += ["--adapter", f"{source['name']}={folder}"]
    if spec.get("maxModelLen"):
        arguments += ["--max-model-len", str(spec["maxModelLen"])]
    if spec.get("chatTemplate"):
        arguments.append(f"--chat-template={spec['chatTemplate']}")
    if (parser := spec.get("toolCallParser")) in EMBEDDED_TOOL_PARSERS:
        arguments += ["--tool-call-parser", parser]
    elif parser:
        known = ", ".join(EMBEDDED_TOOL_PARSERS)
        notices.report_hint(f"spec.toolCallParser {parser} is not read here, where the parsers are: {known}.")
    for field, instead in LEFT_OUT.items():
        if spec.get(field):
            notices.report_hint(f"spec.{field} is not read here. {instead}")
    return arguments


def _find_folder(source: dict[str, Any], claims: dict[str, str], jobs: dict[str, str], field: str) -> Path:
    """Return the local folder of a fineTuneJob or claim of the manifest. A URI is downloaded in a cluster only."""
    if source.get("uri"):
        raise HoneError(
            INVALID_SPEC,
            f"{field}.uri is {source['uri']}, and the engine on this machine downloads no URIs",
            remedy=f"Download it yourself, and name its folder in {field}.claim instead.",
        )
    if source.get("fineTuneJob"):
        name = source["fineTuneJob"]["name"]
        folder = Path(jobs.get(name, name))
        if not folder.is_dir():
            raise HoneError(
                ARTIFACT_MISSING,
                f"{field}.fineTuneJob names {name}, and there is no folder {folder}",
                remedy=f"Run the job here first (hone run), or give its artifact's folder: --job {name}=DIR",
            )
        return folder
    claim: dict[str, str] = source["claim"]
    if claim["name"] not in claims:
        raise HoneError(
            MODEL_NOT_FOUND,
            f"{field}.claim names {claim['name']}, and no --claim gives its folder on this machine",
            remedy=f"Add --claim {claim['name']}=DIR",
        )
    return Path(claims[claim["name"]]) / (claim.get("path") or "")
