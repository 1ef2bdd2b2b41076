"""`hone merge`: merge an adapter into its base model."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from hone.local import requirements
from hone_api.dtypes import Dtype

from hone_cli.commands import options
from hone_cli.ui import child_process, output

Adapter = Annotated[Path, typer.Argument(help="Folder of an adapter, or the output folder of a job.")]
Out = Annotated[Path, typer.Argument(help="Folder for the merged model; it must not exist.")]
Base = Annotated[
    str | None,
    typer.Option(help="Base model: a folder or a name on the hub (default: the one that the adapter names)."),
]
Type = Annotated[Dtype, typer.Option("--dtype", help="Type of the weights; auto: the base model's.")]

Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the code that the base model brings. It can do all that you can."),
]


def command(
    adapter: Adapter,
    out: Out,
    base: Base = None,
    dtype: Type = "auto",
    trust_remote_code: Trust = False,
    verbose: options.Verbose = False,
) -> None:
    """Merge an adapter into its unquantized base model, so that transformers and vLLM load it without PEFT."""
    requirements.require_modules("trainer", "torch", "transformers", "peft")
    arguments = ["merge", str(adapter), str(out), "--dtype", dtype]
    if base:
        arguments += ["--base", base]
    if trust_remote_code:
        arguments += ["--trust-remote-code"]
    if verbose:
        arguments += ["--verbose"]
    code = child_process.run_module("hone_trainer", arguments, on_stop=lambda: output.print_hint("Stopping."))
    if code == 0:
        output.print_next_step("Serve it here", f"hone serve {shlex.quote(str(out))}")
    raise typer.Exit(code)
