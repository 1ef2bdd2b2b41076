"""`hone prepare`: report a dataset's properties and the tokens that training learns from, before any GPU is used."""

import typer
from hone.local import command_lines

from hone_cli.commands import options
from hone_cli.commands.run import File, Output, find_folders, make_run_command
from hone_cli.ui import child_process, output


def command(file: File, output_: Output = None, claim: options.Claims = [], verbose: options.Verbose = False) -> None:  # noqa: B006
    """Download, check and tokenize here, and show the dataset's report. `hone run` continues with it."""
    folder, claims = find_folders(file, output_, claim)
    code = child_process.run_module(
        "hone_trainer",
        command_lines.make_trainer_arguments("prepare", file, folder, claims, verbose=verbose),
        on_stop=lambda: output.print_hint("Stopping: what was downloaded stays in the cache."),
    )
    if code == 0:
        output.print_next_step("Train on it", make_run_command(file, folder, claims))
    raise typer.Exit(code)
