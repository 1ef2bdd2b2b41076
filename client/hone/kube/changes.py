"""Change and delete objects of a cluster."""

import json
from dataclasses import dataclass

from kubernetes.client.exceptions import ApiException

from hone.kube import lookup, rest
from hone.kube.cluster import Cluster, Object, translate_errors
from hone.objects import deletion, suspension
from hone.objects.names import JOB, SERVICE, Kind

FIELD_MANAGER = "hone-client"
_CORE = "/api/v1/namespaces"
_APPLY, _MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


@dataclass(frozen=True)
class PlannedDeletion:
    """What a deletion does, and the objects that it deletes."""

    plan: deletion.Deletion
    objects: tuple[Object, ...]


def plan_deletion(cluster: Cluster, kind: Kind, body: Object, *, with_claim: bool) -> PlannedDeletion:
    """Return what the deletion of an object would do. Raises ClientError where its claim must stay."""
    around = deletion.Neighbours()
    if kind is JOB:
        around = deletion.Neighbours(services=lookup.list_kind(cluster, SERVICE))
        if with_claim:
            jobs, pods = lookup.list_kind(cluster, JOB), lookup.list_pods(cluster, {})
            around = deletion.Neighbours(jobs, around.services, pods, *lookup.list_workloads(cluster))
    plan = deletion.plan_deletion(body, around, with_claim=with_claim)
    claim = _read_claim(cluster, plan.claim) if plan.claim else None
    if claim is None:
        return PlannedDeletion(plan, (body,))
    deletion.require_own_claim(claim, body["metadata"]["name"])
    return PlannedDeletion(plan, (body, claim | {"kind": "PersistentVolumeClaim"}))


def delete_object(cluster: Cluster, body: Object) -> None:
    """Delete exactly this object, not another one of its name. Raises ClientError."""
    name = body["metadata"]["name"]
    with translate_errors(f"{body['kind']} {name} in namespace {cluster.namespace}"):
        options = {"preconditions": {"uid": body["metadata"]["uid"]}, "propagationPolicy": "Background"}
        rest.call_api(cluster, _make_path(cluster, body), method="DELETE", body=options)


def apply_object(cluster: Cluster, body: Object) -> Object:
    """Create an object, or change the one of its name, by server-side apply, and return it. Raises ClientError."""
    with translate_errors(f"{body['kind']} {body['metadata']['name']} in namespace {cluster.namespace}"):
        found: Object = rest.call_api(
            cluster,
            _make_path(cluster, body),
            {"fieldManager": FIELD_MANAGER},
            method="PATCH",
            body=json.dumps(body),
            content=_APPLY,
        )
    return found


def own(body: Object, owner: Object) -> Object:
    """Return an object that is deleted with its owner."""
    about = {key: owner[key] for key in ("apiVersion", "kind")} | {
        key: owner["metadata"][key] for key in ("name", "uid")
    }
    return body | {"metadata": body["metadata"] | {"ownerReferences": [about]}}


def set_suspend(cluster: Cluster, name: str, *, suspend: bool) -> tuple[bool, str]:
    """Set spec.suspend of a job where that changes something. Return whether it did, and a message.

    Raises ClientError.
    """
    is_change, message = suspension.plan_change(lookup.get_object(cluster, JOB, name), suspend=suspend)
    if is_change:
        with translate_errors(f"FineTuneJob {name} in namespace {cluster.namespace}"):
            body = {"spec": {"suspend": suspend}}
            rest.call_api(
                cluster, lookup.make_path(JOB, cluster.namespace, name), method="PATCH", body=body, content=_MERGE
            )
    return is_change, message


def _read_claim(cluster: Cluster, name: str) -> Object | None:
    """Return the claim; None when it does not exist. Raises ClientError."""
    with translate_errors(f"PersistentVolumeClaim {name} in namespace {cluster.namespace}"):
        try:
            found: Object = rest.call_api(cluster, f"{_CORE}/{cluster.namespace}/persistentvolumeclaims/{name}")
        except ApiException as error:
            if error.status != 404:
                raise
            return None
    return found


def _make_path(cluster: Cluster, body: Object) -> str:
    """Return the path of an object of Hone, a claim or a ConfigMap."""
    name = body["metadata"]["name"]
    for kind in (JOB, SERVICE):
        if body["kind"] == kind.name:
            return lookup.make_path(kind, cluster.namespace, name)
    return f"{_CORE}/{cluster.namespace}/{body['kind'].lower()}s/{name}"
