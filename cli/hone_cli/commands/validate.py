"""`hone validate`: report what `kubectl apply` would refuse, without a cluster."""

from pathlib import Path
from typing import Annotated

import typer
from hone_api.reasons import HoneError

from hone_cli.client import documents
from hone_cli.commands import options
from hone_cli.ui import output

Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Manifests: YAML or JSON, any number of documents.")]


def command(files: Files, verbose: options.Verbose = False) -> None:
    """Check manifests offline: what kubectl apply would refuse, it says first."""
    results = [check(file) for file in files]
    raise typer.Exit(0 if all(results) else 1)


def check(path: Path) -> bool:
    """Print the faults in one file, object by object. Return whether there are none."""
    try:
        found = documents.load(path)
    except HoneError as error:
        _refuse(str(path), [error.message])
        return False
    results = [_check_object(path, document) for document in found]
    return all(results)


def _check_object(path: Path, document: documents.Document) -> bool:
    title = f"{path}: {documents.title(document)}"
    nameless = documents.find_missing_names(document)
    if nameless:
        _refuse(title, nameless)
        return False
    if not documents.is_hones(document):
        output.print_line(f"- {title}: not checked, it is not an object of Hone's")
        return True
    wrong = documents.problems(document)
    if wrong:
        _refuse(title, wrong)
        return False
    output.print_line(f"✓ {title}", color="green")
    return True


def _refuse(title: str, sentences: list[str]) -> None:
    output.print_line(f"✗ {title}", color="red")
    for sentence in sentences:
        output.print_line(f"  {sentence}")
