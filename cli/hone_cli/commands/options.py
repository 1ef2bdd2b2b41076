"""Options that several commands share."""

from typing import Annotated

import typer

from hone_cli.ui import output

Claims = Annotated[list[str], typer.Option("--claim", metavar="NAME=DIR", help="Folder that stands for a claim.")]
Context = Annotated[str | None, typer.Option(help="Kubeconfig context (default: the current one).")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace (default: the context's).")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show details, and tracebacks.", callback=output.set_verbose)]
