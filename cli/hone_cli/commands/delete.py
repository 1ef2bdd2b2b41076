"""`hone delete`: delete an object after showing what goes and what stays."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone_cli.commands import options
from hone_cli.ui import output

if TYPE_CHECKING:
    from hone_cli.client.cluster import Cluster

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
    from hone_cli.client import cluster, lookup
    from hone_cli.objects import deletion
    from hone_cli.objects.names import JOB, SERVICE

    connection = cluster.connect(context, namespace)
    kind, body = lookup.find_object(connection, name)
    around = deletion.Neighbours()
    if kind is JOB:
        around = deletion.Neighbours(
            lookup.list_kind(connection, JOB) if with_claim else (),
            lookup.list_kind(connection, SERVICE),
            lookup.list_pods(connection, {}) if with_claim else (),
        )
    plan = deletion.plan_deletion(body, around, with_claim=with_claim)
    claim = read_claim(connection, plan.claim) if plan.claim else None
    if claim:
        deletion.require_own_claim(claim, body["metadata"]["name"])
    for title, lines in (("Is deleted:", plan.goes), ("Stays:", plan.stays), ("Is affected:", plan.affected)):
        for number, line in enumerate(lines):
            output.print_line(f"{title if number == 0 else '':<13}{line}", err=True)
    if not yes:
        output.require_yes(f"Delete {kind.name} {body['metadata']['name']} in namespace {connection.namespace}?")
    delete_object(connection, lookup.make_path(kind, connection.namespace, body["metadata"]["name"]), body)
    if claim:
        delete_object(
            connection,
            make_claim_path(connection, claim["metadata"]["name"]),
            claim | {"kind": "PersistentVolumeClaim"},
        )


def read_claim(connection: "Cluster", name: str) -> dict[str, Any] | None:
    """Return the claim; None when it does not exist. Raises Problem."""
    from kubernetes.client.exceptions import ApiException

    from hone_cli.client import cluster, rest

    with cluster.translate_errors(f"PersistentVolumeClaim {name} in namespace {connection.namespace}"):
        try:
            found: dict[str, Any] = rest.call_api(connection, make_claim_path(connection, name))
        except ApiException as error:
            if error.status != 404:
                raise
            return None
    return found


def make_claim_path(connection: "Cluster", name: str) -> str:
    """Return the path of a claim in the API."""
    return f"/api/v1/namespaces/{connection.namespace}/persistentvolumeclaims/{name}"


def delete_object(connection: "Cluster", path: str, body: dict[str, Any]) -> None:
    """Delete exactly this object, not another one of its name. Raises Problem."""
    from hone_cli.client import cluster, rest

    name = body["metadata"]["name"]
    with cluster.translate_errors(f"{body['kind']} {name} in namespace {connection.namespace}"):
        options_ = {"preconditions": {"uid": body["metadata"]["uid"]}, "propagationPolicy": "Background"}
        rest.call_api(connection, path, method="DELETE", body=options_)
    output.print_line(f"✓ {body['kind']} {name} was deleted", color="green")
