"""`hone plan`: estimate how much device memory a job needs, and which GPUs have it."""

from pathlib import Path
from typing import Annotated

import typer
from hone.local import command_lines, requirements
from hone.specs import documents

from hone_cli.commands import options
from hone_cli.ui import child_process, output

File = Annotated[Path, typer.Argument(help="Manifest with one FineTuneJob.")]


def command(file: File, claim: options.Claims = [], verbose: options.Verbose = False) -> None:  # noqa: B006
    """Estimate a FineTuneJob's device memory from the model's config.json: no weights, no GPU."""
    documents.load_only("FineTuneJob", file)
    claims = documents.parse_folders("--claim", claim)
    requirements.require_modules("trainer", "torch", "transformers", "peft")
    arguments = ["plan", str(file), *command_lines.make_claim_options(claims)]
    if verbose:
        arguments += ["--verbose"]
    raise typer.Exit(
        child_process.run_module("hone_trainer", arguments, on_stop=lambda: output.print_hint("Stopping."))
    )
