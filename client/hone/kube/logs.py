"""Read the log of a container, and follow it until the container ends."""

import time
from collections.abc import Iterable, Iterator

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError, ReadTimeoutError

from hone import notices
from hone.errors import ClientError
from hone.kube import lookup, rest, temporary_pod
from hone.kube.cluster import Cluster, translate_errors
from hone.objects.log_target import Continuation, Target

# A trainer may be silent for minutes: then the log is requested again from its last line on.
SILENCE_SECONDS = 300.0
RETRY_SECONDS = 1.0
# How long the way to the cluster may be broken before it is given up.
PATIENCE_SECONDS = 120.0
# A longer line is printed in pieces.
LONGEST_LINE_BYTES = 65536


def read_log(connection: Cluster, target: Target) -> Iterator[str]:
    """Yield the lines of a log as it is now. Raises ClientError."""
    query = {"container": target.container} | ({"previous": "true"} if target.is_previous else {})
    with translate_errors(f"log of pod {target.pod}, container {target.container}"):
        yield from split_lines(lookup.stream_log(connection, target.pod, query, SILENCE_SECONDS))


def follow_log(connection: Cluster, target: Target) -> Iterator[str]:
    """Yield the lines of a log until its container has ended. Continues where a stream was cut. Raises ClientError."""
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
                with translate_errors(f"log of pod {target.pod}, container {target.container}"):
                    raise
        notices.report_hint("The log was cut; trying again.")
        time.sleep(RETRY_SECONDS)


def has_ended(connection: Cluster, target: Target) -> bool:
    """Return whether the container has ended. Raises ClientError when its pod is gone, ApiException and HTTPError."""
    try:
        pod = rest.call_api(connection, f"/api/v1/namespaces/{connection.namespace}/pods/{target.pod}")
    except ApiException as error:
        if error.status == 404:
            raise ClientError(f"pod {target.pod} was deleted", "See `hone describe` for what follows it.") from error
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
