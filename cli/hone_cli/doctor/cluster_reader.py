"""Read a cluster's facts with the user's own rights.

Every call has a timeout; a refused call is a fact as well. Raises ClientError if the cluster does not answer at all.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hone.kube import rest
from hone.kube.cluster import GROUP, Cluster, translate_errors
from hone.objects import operators
from hone_api.schema.crd import KINDS
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from hone_cli.doctor.checks import addons, cluster_facts
from hone_cli.doctor.checks.cluster_facts import ClusterFacts, Object
from hone_cli.doctor.checks.findings import Unread

T = TypeVar("T")
# Until the second and last call to an API server that is too busy for the first one.
BUSY_SECONDS = 1.0
# After that no further call is made, so that a slow cluster ends in a report as well.
TOTAL_SECONDS = 180.0
CLAIMS = "resource.k8s.io"


def collect_facts(cluster: Cluster) -> ClusterFacts:
    """Return what the user can read of the cluster. Raises ClientError when it can't be reached or refuses the user."""
    with translate_errors("the version of the cluster"):
        version = rest.call_api(cluster, "/version")
    attempt = Attempts(time.monotonic() + TOTAL_SECONDS)
    versions = attempt.read(lambda: _list_versions(cluster))
    claims, queues = _make_path(versions, CLAIMS), _make_path(versions, addons.KUEUE)
    local_queues = f"namespaces/{cluster.namespace}/localqueues"
    return ClusterFacts(
        version=_parse_version(version),
        nodes=attempt.read(lambda: tuple(map(cluster_facts.read_node, rest.list_objects(cluster, "/api/v1/nodes")))),
        devices=attempt.read_below(
            claims, lambda path: cluster_facts.read_devices(rest.list_objects(cluster, f"{path}/resourceslices")), ()
        ),
        device_classes=attempt.read_below(claims, lambda path: _read_device_classes(cluster, path), {}),
        daemon_sets=attempt.read(lambda: _count_daemon_pods(cluster)),
        storage_classes=attempt.read(
            lambda: tuple(rest.list_objects(cluster, "/apis/storage.k8s.io/v1/storageclasses"))
        ),
        definitions=attempt.read(lambda: {name: _read_definition(cluster, name) for name in _list_definitions()}),
        operators=_find_operators(cluster, attempt),
        groups=versions if isinstance(versions, Unread) else frozenset(versions),
        services=attempt.read(lambda: _list_services(cluster)),
        local_queues=attempt.read_below(queues, lambda path: _list_names(cluster, f"{path}/{local_queues}"), ()),
        namespace=cluster.namespace,
    )


@dataclass(frozen=True)
class Attempts:
    """Calls that may fail, until a deadline of the monotonic clock."""

    deadline: float

    def read(self, call: Callable[[], T]) -> T | Unread:
        """Return the result of a call, or why it failed or was not made."""
        if time.monotonic() > self.deadline:
            return Unread(f"the cluster took more than {TOTAL_SECONDS:.0f} s to answer earlier requests")
        for is_last in (False, True):
            try:
                return call()
            except (ApiException, HTTPError) as error:
                is_busy = isinstance(error, ApiException) and (error.status == 429 or (error.status or 0) >= 500)
                if is_last or not is_busy:
                    return Unread(rest.describe_error(error))
                time.sleep(BUSY_SECONDS)
        raise AssertionError("the last call returns")

    def read_below(self, path: str | Unread | None, call: Callable[[str], T], nothing: T) -> T | Unread:
        """Return `nothing` if the cluster has no such API, whose `path` is None then; else read it."""
        if isinstance(path, Unread):
            return path
        return nothing if path is None else self.read(lambda: call(path))


def _list_versions(cluster: Cluster) -> dict[str, str]:
    """Return the preferred version of each API group."""
    found = rest.call_api(cluster, "/apis").get("groups") or []
    return {group["name"]: group["preferredVersion"]["groupVersion"] for group in found}


def _make_path(versions: dict[str, str] | Unread, group: str) -> str | Unread | None:
    if isinstance(versions, Unread):
        return versions
    return f"/apis/{versions[group]}" if group in versions else None


def _parse_version(body: Object) -> tuple[int, int]:
    major, minor = (re.match(r"\d*", str(body.get(name) or "")) for name in ("major", "minor"))
    return int((major and major[0]) or 0), int((minor and minor[0]) or 0)


def _list_names(cluster: Cluster, path: str) -> tuple[str, ...]:
    return tuple(each["metadata"]["name"] for each in rest.list_objects(cluster, path))


def _read_device_classes(cluster: Cluster, path: str) -> dict[str, str]:
    """Return the extended resource of each DeviceClass by its name. The API server keeps the field where it works."""
    classes = rest.list_objects(cluster, f"{path}/deviceclasses")
    return {each["metadata"]["name"]: (each.get("spec") or {}).get("extendedResourceName") or "" for each in classes}


def _count_daemon_pods(cluster: Cluster) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for each in rest.list_objects(cluster, "/apis/apps/v1/daemonsets"):
        status = each.get("status") or {}
        for container in each["spec"]["template"]["spec"]["containers"]:
            image = container.get("image") or ""
            desired, ready = found.get(image, (0, 0))
            found[image] = (
                desired + int(status.get("desiredNumberScheduled") or 0),
                ready + int(status.get("numberReady") or 0),
            )
    return found


def _list_definitions() -> list[str]:
    return [f"{kind.PLURAL}.{GROUP}" for kind in KINDS.values()]


def _read_definition(cluster: Cluster, name: str) -> Object | None:
    try:
        found: Object = rest.call_api(cluster, f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    except ApiException as error:
        if error.status == 404:
            return None
        raise
    return found


def _find_operators(cluster: Cluster, attempt: Attempts) -> tuple[Object, ...] | Unread:
    """Return the Deployments of operators: of all namespaces, or of Hone's and the user's if not all may be listed."""
    everywhere = attempt.read(lambda: _list_deployments(cluster, "/apis/apps/v1/deployments"))
    if not isinstance(everywhere, Unread):
        return everywhere
    for namespace in ("hone-system", cluster.namespace):
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        there = attempt.read(lambda path=path: _list_deployments(cluster, path))  # type: ignore[misc]
        if there and not isinstance(there, Unread):
            return there
    return everywhere


def _list_deployments(cluster: Cluster, path: str) -> tuple[Object, ...]:
    return tuple(rest.list_objects(cluster, path, {"labelSelector": operators.LABEL}))


def _list_services(cluster: Cluster) -> dict[str, bool]:
    """Return whether each API that another program serves is available, by its group."""
    found: dict[str, bool] = {}
    for each in rest.list_objects(cluster, "/apis/apiregistration.k8s.io/v1/apiservices"):
        if each["spec"].get("service"):
            conditions = (each.get("status") or {}).get("conditions") or []
            is_available = any(one.get("type") == "Available" and one.get("status") == "True" for one in conditions)
            group = each["spec"].get("group") or ""
            found[group] = found.get(group, False) or is_available
    return found
