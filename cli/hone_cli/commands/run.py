"""`hone run`: run the cluster's trainer on this machine."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from hone.local import command_lines, requirements
from hone.specs import documents
from hone_api.exit_codes import INTERRUPTED_EXIT_CODE

from hone_cli.commands import options
from hone_cli.ui import child_process, output

File = Annotated[Path, typer.Argument(help="Manifest with one FineTuneJob; ConfigMaps in the same file are used.")]
Output = Annotated[
    Path | None, typer.Option("--output", help="Folder for the artifact (default: ./<name of the job>).")
]


def command(file: File, output_: Output = None, claim: options.Claims = [], verbose: options.Verbose = False) -> None:  # noqa: B006
    """Train here what a FineTuneJob describes, with the trainer that runs in the cluster."""
    folder, claims = find_folders(file, output_, claim)
    code = child_process.run_module(
        "hone_trainer",
        [*command_lines.make_trainer_arguments("run", file, folder, claims, verbose=verbose), "--port", "0"],
        on_stop=lambda: output.print_hint("Stopping: a checkpoint is saved first. Ctrl-C again stops at once."),
    )
    if code == 0:
        output.print_next_step(
            "Talk to it, with `hone chat` in another terminal", f"hone serve {shlex.quote(str(folder))}"
        )
    elif code == INTERRUPTED_EXIT_CODE:
        output.print_next_step("Resume from the checkpoint", make_run_command(file, folder, claims))
    raise typer.Exit(code)


def find_folders(file: Path, output_folder: Path | None, claim: list[str]) -> tuple[Path, dict[str, str]]:
    """Return the output folder and the folders of claims of the file's FineTuneJob, which can be trained here.

    Raises HoneError InvalidSpec, and ClientError when packages are missing.
    """
    job = documents.load_only("FineTuneJob", file)
    claims = documents.parse_folders("--claim", claim)
    requirements.require_modules(*requirements.TRAINER)
    return output_folder or Path(job["metadata"]["name"]), claims


def make_run_command(file: Path, folder: Path, claims: dict[str, str]) -> str:
    """Return the command with which the user trains, or continues."""
    return shlex.join(["hone", "run", str(file), "--output", str(folder), *command_lines.make_claim_options(claims)])
