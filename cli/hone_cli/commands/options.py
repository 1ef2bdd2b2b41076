"""Options that several commands share."""

from enum import StrEnum
from typing import Annotated

import typer

from hone_cli.ui import completion, output


class Format(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"


Claims = Annotated[list[str], typer.Option("--claim", metavar="NAME=DIR", help="Folder that stands for a claim.")]
Context = Annotated[str | None, typer.Option(help="Kubeconfig context (default: the current one).")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace (default: the context's).")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show details, and tracebacks.", callback=output.set_verbose)]
ObjectName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="FineTuneJob or InferenceService: NAME, ftj/NAME or hisvc/NAME.",
        autocompletion=completion.complete_objects,
    ),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="FineTuneJob.", autocompletion=completion.complete_jobs)]
