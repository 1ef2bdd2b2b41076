"""Complete names of objects in the shell from the cluster. Imports little: every press of the Tab key runs it."""

from collections.abc import Sequence

import typer

# Seconds to connect, and to read: a shell waits for the answer.
TIMEOUT = (2.0, 2.0)


def complete_jobs(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of FineTuneJobs that begin with a text."""
    return _complete_names(context, incomplete, ["FineTuneJob"])


def complete_services(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of InferenceServices that begin with a text."""
    return _complete_names(context, incomplete, ["InferenceService"])


def complete_objects(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of objects of both kinds that begin with a text; ftj/ and hisvc/ choose the kind."""
    return _complete_names(context, incomplete, ["FineTuneJob", "InferenceService"])


def _complete_names(context: typer.Context, incomplete: str, kinds: Sequence[str]) -> list[str]:
    from hone.kube import cluster, lookup, rest
    from hone.objects.names import KINDS, parse_reference

    prefix, slash, _ = incomplete.rpartition("/")
    found: list[str] = []
    try:
        wanted = parse_reference(f"{prefix}/x")[0] if slash else None
        connection = cluster.connect(context.params.get("context"), context.params.get("namespace"))
        for kind in KINDS:
            if kind.name in kinds and wanted in (None, kind):
                path = lookup.make_path(kind, connection.namespace)
                page = rest.call_api(connection, path, {"limit": str(rest.PAGE)}, timeout=TIMEOUT)
                found += [f"{prefix}{slash}{body['metadata']['name']}" for body in page.get("items") or []]
    except Exception:  # a message would be in the middle of the user's command
        return []
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete)]
