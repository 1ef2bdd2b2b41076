"""`hone validate`: report what `kubectl apply` would refuse, without a cluster."""

from pathlib import Path
from typing import Annotated

import typer
from hone.specs import documents
from hone_api.reasons import HoneError

from hone_cli.commands import options
from hone_cli.ui import output

Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Manifests: YAML or JSON, any number of documents.")]


def command(files: Files, verbose: options.Verbose = False) -> None:
    """Check manifests offline: what kubectl apply would refuse, it says first."""
    results = [check_file(file) for file in files]
    raise typer.Exit(0 if all(results) else 1)


def check_file(path: Path) -> bool:
    """Print the faults in one file, object by object. Return whether there are none."""
    try:
        found = documents.load_file(path)
    except HoneError as error:
        _print_faults(str(path), [error.message])
        return False
    results = [_check_object(path, document) for document in found]
    return all(results)


def _check_object(path: Path, document: documents.Document) -> bool:
    title = f"{path}: {documents.make_title(document)}"
    nameless = documents.find_missing_names(document)
    if nameless:
        _print_faults(title, nameless)
        return False
    if not documents.is_of_hone(document):
        output.print_line(f"- {title}: not checked, it is not an object of Hone's")
        return True
    wrong = documents.find_problems(document)
    if wrong:
        _print_faults(title, wrong)
        return False
    output.print_line(f"✓ {title}", color="green")
    return True


def _print_faults(title: str, sentences: list[str]) -> None:
    output.print_line(f"✗ {title}", color="red")
    for sentence in sentences:
        output.print_line(f"  {sentence}")
