"""`hone serve`: run the embedded engine on this machine."""

from pathlib import Path
from typing import Annotated

import typer
from hone.local import command_lines, requirements
from hone.specs import documents
from hone_api.io.listening import join_address

from hone_cli.commands import options
from hone_cli.ui import child_process, output

Target = Annotated[Path, typer.Argument(metavar="DIR|FILE", help="An artifact, a model, or an InferenceService.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]
Jobs = Annotated[
    list[str],
    typer.Option("--job", metavar="NAME=DIR", help="Folder of a FineTuneJob's artifact (default: ./NAME); for FILE."),
]
Name = Annotated[str | None, typer.Option(help="What clients call the model.")]
Adapters = Annotated[list[str], typer.Option("--adapter", metavar="NAME=DIR", help="Serve an adapter as well.")]


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
    arguments = command_lines.make_engine_arguments(target, claims, jobs)
    requirements.require_modules(*requirements.ENGINE)
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
