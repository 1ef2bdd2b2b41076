"""`hone logs`: print the log of a job's trainer or preparation, or of a service's engine."""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from hone_cli.commands import options
from hone_cli.ui import output
from hone_cli.ui.output import Problem

if TYPE_CHECKING:
    from hone_cli.client.cluster import Cluster
    from hone_cli.objects.log_target import Target

# A trainer may be silent for minutes: then the log is requested again from its last line on.
SILENCE_SECONDS = 300.0
RETRY_SECONDS = 1.0
# How long the way to the cluster may be broken before it is given up.
PATIENCE_SECONDS = 120.0
# A longer line is printed in pieces.
LONGEST_LINE_BYTES = 65536

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Print new lines as they come, until the pod ends.")]
Previous = Annotated[
    bool, typer.Option("--previous", "-p", help="The log before the last restart: of the pod, or of the container.")
]
Rank = Annotated[int, typer.Option("--rank", min=0, help="Rank of the trainer whose pod is meant.")]


def command(
    name: options.ObjectName,
    follow: Follow = False,
    previous: Previous = False,
    rank: Rank = 0,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Print the log of a job's trainer (before it starts, of the preparation), or of a service's newest engine."""
    from hone_cli.client import cluster, lookup
    from hone_cli.objects import log_target

    if follow and previous:
        raise typer.BadParameter("the previous log has ended: leave out --follow or --previous")
    connection = cluster.connect(context, namespace)
    kind, body = lookup.find_object(connection, name)
    pods = lookup.list_pods(connection, {kind.label: body["metadata"]["name"]})
    target = log_target.choose_target(body, pods, rank=rank, is_previous=previous)
    others = f"; {target.others} more engine pods" if target.others else ""
    output.print_hint(f"Pod {target.pod}, container {target.container}{others}:")
    for line in follow_log(connection, target) if follow else read_log(connection, target):
        output.print_line(line)


def read_log(connection: "Cluster", target: "Target") -> Iterator[str]:
    """Yield the lines of a log as it is now. Raises Problem."""
    from hone_cli.client import cluster, lookup

    query = {"container": target.container} | ({"previous": "true"} if target.is_previous else {})
    with cluster.translate_errors(f"log of pod {target.pod}, container {target.container}"):
        yield from split_lines(lookup.stream_log(connection, target.pod, query, SILENCE_SECONDS))


def follow_log(connection: "Cluster", target: "Target") -> Iterator[str]:
    """Yield the lines of a log until its container has ended. Continues where a stream was cut. Raises Problem."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    from hone_cli.client import cluster, lookup, temporary_pod
    from hone_cli.objects.log_target import Continuation

    position, heard_at = Continuation(), time.monotonic()
    while True:
        query = {"container": target.container, "follow": "true", "timestamps": "true"}
        query |= {"sinceTime": position.since} if position.since else {}
        try:
            yield from position.take(split_lines(lookup.stream_log(connection, target.pod, query, SILENCE_SECONDS)))
            heard_at = time.monotonic()
            if has_ended(connection, target):
                return
        except ReadTimeoutError:
            heard_at = time.monotonic()
            continue
        except (ApiException, HTTPError) as error:
            if temporary_pod.is_final(error) or time.monotonic() - heard_at > PATIENCE_SECONDS:
                with cluster.translate_errors(f"log of pod {target.pod}, container {target.container}"):
                    raise
        output.print_hint("The log was cut; trying again.")
        time.sleep(RETRY_SECONDS)


def has_ended(connection: "Cluster", target: "Target") -> bool:
    """Return whether the container has ended. Raises Problem when its pod is gone, ApiException and HTTPError."""
    from kubernetes.client.exceptions import ApiException

    from hone_cli.client import rest

    try:
        pod = rest.call_api(connection, f"/api/v1/namespaces/{connection.namespace}/pods/{target.pod}")
    except ApiException as error:
        if error.status == 404:
            raise Problem(f"pod {target.pod} was deleted", "See `hone describe` for what follows it.") from error
        raise
    status = pod.get("status") or {}
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    states = [each.get("state") or {} for each in containers if each.get("name") == target.container]
    return status.get("phase") in ("Succeeded", "Failed") or any(state.get("terminated") for state in states)


def split_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a text in pieces, as soon as they are complete."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        if len(rest) > LONGEST_LINE_BYTES:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")
