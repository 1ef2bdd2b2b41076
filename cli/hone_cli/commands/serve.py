"""`hone serve`: run the embedded engine on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer
from hone_api.io.listening import join_address
from hone_api.layout import EMBEDDED_TOOL_PARSERS
from hone_api.reasons import ARTIFACT_MISSING, MODEL_NOT_FOUND, HoneError

from hone_cli.client import child_process, documents
from hone_cli.commands import options
from hone_cli.ui import output

Target = Annotated[Path, typer.Argument(metavar="DIR|FILE", help="An artifact, a model, or an InferenceService.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]
Jobs = Annotated[
    list[str],
    typer.Option("--job", metavar="NAME=DIR", help="Folder of a FineTuneJob's artifact (default: ./NAME); for FILE."),
]
Name = Annotated[str | None, typer.Option(help="What clients call the model.")]
Adapters = Annotated[list[str], typer.Option("--adapter", metavar="NAME=DIR", help="Serve an adapter as well.")]

# Fields that change the API for clients but have no effect here, and what to do instead.
LEFT_OUT = {
    "apiKeySecret": "Put a key that clients must send into the variable HONE_API_KEY.",
    "reasoningParser": "The embedded engine returns what a model thinks as a part of its text.",
    "extraArgs": "They are for the engine in the cluster; `hone-server --help` shows those of the one here.",
}


def command(
    target: Target,
    port: Port = 8000,
    host: Host = "127.0.0.1",
    claim: options.Claims = [],  # noqa: B006
    job: Jobs = [],  # noqa: B006
    name: Name = None,
    adapter: Adapters = [],  # noqa: B006
    verbose: options.Verbose = False,
) -> None:
    """Serve an artifact or an InferenceService here, behind an OpenAI-compatible API."""
    claims, jobs = documents.parse_folders("--claim", claim), documents.parse_folders("--job", job)
    arguments = make_engine_arguments(target, claims, jobs)
    child_process.require_modules("server", "torch", "transformers", "peft", "fastapi", "uvicorn")
    for alias, folder in documents.parse_folders("--adapter", adapter).items():
        arguments += ["--adapter", f"{alias}={folder}"]
    for alias, folder in claims.items():
        arguments += ["--claim", f"{alias}={folder}"]
    if name:
        arguments += ["--name", name]
    url = f"http://{join_address(host, port)}/v1"
    output.print_hint(f"{url} once it is ready; talk to it with: hone chat --url {url}")
    code = child_process.run_module(
        "hone_server", [*arguments, "--host", host, "--port", str(port)], on_stop=lambda: output.print_hint("Stopping.")
    )
    raise typer.Exit(code)


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
        output.print_hint(f"spec.toolCallParser {parser} is not read here, where the parsers are: {known}.")
    for field, instead in LEFT_OUT.items():
        if spec.get(field):
            output.print_hint(f"spec.{field} is not read here. {instead}")
    return arguments


def _find_folder(source: dict[str, Any], claims: dict[str, str], jobs: dict[str, str], field: str) -> Path:
    """Return the local folder of a fineTuneJob or claim of the manifest."""
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
