"""`hone list` and `hone describe`: show the FineTuneJobs and InferenceServices of a cluster."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from hone_cli.commands import options
from hone_cli.ui import output

Everywhere = Annotated[bool, typer.Option("--all-namespaces", "-A", help="List the objects of all namespaces.")]
Output = Annotated[options.Format, typer.Option("--output", "-o", help="Format of the list.")]


def list_command(
    everywhere: Everywhere = False,
    format_: Output = options.Format.TABLE,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """List FineTuneJobs and InferenceServices: phase, progress, age, model, and digest or endpoint.

    A kind that you may not list is named, and the exit code is then 1, as of kubectl get.
    """
    from hone.kube import cluster, lookup
    from hone.objects import table
    from hone.objects.names import KINDS

    if everywhere and namespace:
        raise typer.BadParameter("give --namespace or --all-namespaces, not both")
    connection = cluster.connect(context, namespace)
    found, refusals = lookup.list_kinds(connection, KINDS, everywhere=everywhere)
    for refusal in refusals:
        output.print_failure(refusal)
    if format_ is options.Format.JSON:
        output.print_line(json.dumps({"items": table.make_rows(found)}, indent=2))
    elif found:
        for line in table.format_table(found, datetime.now(UTC), with_namespace=everywhere):
            output.print_line(line)
    elif not refusals:
        where = "any namespace" if everywhere else f"namespace {connection.namespace}"
        output.print_hint(f"No FineTuneJob and no InferenceService in {where}.")
    if refusals:
        raise typer.Exit(1)


def describe_command(
    name: options.ObjectName,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Show what happened to a FineTuneJob or an InferenceService, in order, and its children."""
    from hone.kube import cluster, lookup
    from hone.objects import deletion, timeline
    from hone.objects.names import JOB

    connection = cluster.connect(context, namespace)
    kind, body = lookup.find_object(connection, name)
    claim = deletion.find_output_claim(body)[0] if kind is JOB else None
    around = lookup.read_surroundings(connection, kind, body, claim)
    for line in timeline.describe_object(body, around, datetime.now(UTC)):
        output.print_line(line)
