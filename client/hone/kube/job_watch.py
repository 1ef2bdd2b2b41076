"""Follow a FineTuneJob at every change."""

import time
from collections.abc import Iterator
from typing import Any

from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from hone import notices
from hone.errors import ClientError
from hone.kube.cluster import GROUP, TIMEOUT, VERSION, Cluster, Object, translate_errors
from hone.objects.names import JOB

WATCH_SECONDS = 60
# How long the way to the cluster may be broken before it is given up.
PATIENCE_SECONDS = 120


def follow_job(connection: Cluster, name: str) -> Iterator[Object]:
    """Yield the job at every change, without end. Survives expired watches and outages of up to PATIENCE_SECONDS.

    Raises ClientError when the job does not exist, was deleted, or the cluster stays unreachable.
    """
    seen_at: float | None = None
    while True:
        try:
            for job in _follow_watch(connection, name):
                seen_at = time.monotonic()
                yield job
        except (ApiException, HTTPError) as error:
            status = error.status if isinstance(error, ApiException) else None
            if status == 404 and seen_at is not None:
                raise ClientError(
                    f"FineTuneJob {name} was deleted", "Its claim, with what was saved, is kept."
                ) from error
            lasting = status is not None and status not in (410, 429) and status < 500
            if seen_at is None or lasting or time.monotonic() - seen_at > PATIENCE_SECONDS:
                with translate_errors(f"FineTuneJob {name} in namespace {connection.namespace}"):
                    raise
            if status != 410:
                notices.report_hint("The way to the cluster is broken; trying again.")
        time.sleep(1)


def _follow_watch(connection: Cluster, name: str) -> Iterator[Object]:
    """Yield the job now, and at every change until the API server ends the watch."""
    objects: Any = client.CustomObjectsApi(connection.api)
    where = (GROUP, VERSION, connection.namespace, JOB.plural)
    job = objects.get_namespaced_custom_object(*where, name, _request_timeout=TIMEOUT)
    yield job
    watcher: Any = watch.Watch()  # type: ignore[no-untyped-call]
    events = watcher.stream(
        objects.list_namespaced_custom_object,
        *where,
        field_selector=f"metadata.name={name}",
        resource_version=job["metadata"]["resourceVersion"],
        timeout_seconds=WATCH_SECONDS,
        _request_timeout=(TIMEOUT[0], WATCH_SECONDS + TIMEOUT[1]),
    )
    for event in events:
        if event["type"] == "DELETED":
            return
        if event["type"] in ("ADDED", "MODIFIED"):
            yield event["object"]
