"""`hone delete`: delete an object after showing what goes and what stays."""

from typing import Annotated

import typer

from hone_cli.commands import options
from hone_cli.ui import output

WithClaim = Annotated[bool, typer.Option("--with-claim", help="Delete the job's output claim with the artifact, too.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def command(
    name: options.ObjectName,
    with_claim: WithClaim = False,
    yes: Yes = False,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Delete a FineTuneJob or an InferenceService. The output claim with the artifact stays, unless --with-claim."""
    from hone.kube import changes, cluster, lookup

    connection = cluster.connect(context, namespace)
    kind, body = lookup.find_object(connection, name)
    deletion = changes.plan_deletion(connection, kind, body, with_claim=with_claim)
    plan = deletion.plan
    parts = {"Is deleted:": plan.goes, "Stays:": plan.stays, "Is affected:": plan.affected, "Is unknown:": plan.unknown}
    for title, lines in parts.items():
        for number, line in enumerate(lines):
            output.print_line(f"{title if number == 0 else '':<13}{line}", err=True)
    if not yes:
        output.require_yes(f"Delete {kind.name} {body['metadata']['name']} in namespace {connection.namespace}?")
    for each in deletion.objects:
        changes.delete_object(connection, each)
        output.print_line(f"✓ {each['kind']} {each['metadata']['name']} was deleted", color="green")
