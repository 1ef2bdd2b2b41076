"""Decide which object owns a child: its controller reference, or Hone's labels where it has no controller.

A child can lose its owner reference: a restored backup strips it, and so does a deletion that leaves orphans. Such an
orphan is adopted if Hone's labels on it name the object. Hone never takes over a child of another owner.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from hone_api.layout import MANAGED_BY_LABEL, MANAGER
from hone_api.reasons import CHILD_LEAVING, NAME_CONFLICT, HoneError

from hone_operator.objects.owners import OWNER_LABELS
from hone_operator.objects.resources import PODS, Object, find_controller, is_controlled_by
from hone_operator.objects.timestamps import has_lasted, parse_time
from hone_operator.reconcile.plan import Action, Apply, Patch, get_target_name

# The garbage collector needs seconds; a longer deletion is reported.
LEAVING_GRACE = timedelta(minutes=1)


def is_leaving(child: Object | None, owner: Object) -> bool:
    """Return whether a child is being deleted, or belongs to a deleted object of the same name."""
    return child is not None and (_is_of_predecessor(child, owner) or bool(child["metadata"].get("deletionTimestamp")))


def explain_leaving(children: list[Object], owner: Object, now: datetime) -> HoneError | None:
    """Return why the deletion of a child takes long; None while it does not."""
    for child in children:
        if not is_leaving(child, owner):
            continue
        metadata = child["metadata"]
        what, where = f"{child['kind']} {metadata['name']}", f"--namespace {metadata['namespace']}"
        command = f"kubectl get {child['kind'].lower()} {metadata['name']} {where} --output yaml"
        if since := metadata.get("deletionTimestamp"):
            if not has_lasted(parse_time(since), LEAVING_GRACE, now):
                continue
            text = f"{what} has been in deletion since {since}"
            if finalizers := metadata.get("finalizers"):
                text += f", held by finalizers {', '.join(finalizers)}"
            remedy = (
                "The controller that set a finalizer has to remove it: look whether it runs. If it is gone for good, "
                f"take its finalizer out by `kubectl edit`. See: {command}"
            )
            return HoneError(CHILD_LEAVING, text, remedy=remedy)
        since = owner["metadata"].get("creationTimestamp")
        if since is None or not has_lasted(parse_time(since), LEAVING_GRACE, now):
            continue
        uid = (find_controller(child) or {})["uid"]
        text = f"{what} belongs to an earlier {owner['kind']} of this name (uid {uid}), and has not been removed"
        remedy = (
            "The garbage collector removes it when nothing holds it: look at its finalizers, and whether "
            f"kube-controller-manager runs; or delete it. See: {command}"
        )
        return HoneError(CHILD_LEAVING, text, remedy=remedy)
    return None


def is_orphan(child: Object, owner: Object) -> bool:
    """Return whether a child has no controller, and labels of Hone that name this owner."""
    metadata = owner["metadata"]
    labels = child["metadata"].get("labels") or {}
    named = next((labels.get(label) for label, resource, _ in OWNER_LABELS if resource.kind == owner["kind"]), None)
    is_hones = labels.get(MANAGED_BY_LABEL) == MANAGER and named == metadata["name"]
    return is_hones and find_controller(child) is None and child["metadata"].get("namespace") == metadata["namespace"]


def is_own(child: Object, owner: Object) -> bool:
    """Return whether this owner controls the child, or the child is an orphan of an owner of this name."""
    return is_controlled_by(child, owner) or is_orphan(child, owner)


def explain_name_conflict(children: list[Object], owner: Object) -> HoneError | None:
    """Return an error when another object has the name of a child; None otherwise."""
    for child in children:
        if not is_own(child, owner):
            found = f"{child['kind']} {child['metadata']['name']} exists and does not belong to this {owner['kind']}"
            return HoneError(NAME_CONFLICT, found)
    return None


def is_foreign_claim(claim: Object | None, owner: Object) -> bool:
    """Return whether a claim with the name of the output claim was not created by Hone for a job of this name."""
    return claim is not None and not is_orphan(claim, owner)


def bind_to_uid(action: Action, found: list[Object]) -> Action:
    """Return the action with the uid of the object on which it was decided: it must not change another one."""
    if not isinstance(action, Apply | Patch):
        return action
    uids = [
        each["metadata"].get("uid")
        for each in found
        if each["metadata"]["name"] == get_target_name(action) and each.get("kind", PODS.kind) == action.resource.kind
    ]
    if not uids or uids[0] is None:
        return action
    body = action.patch if isinstance(action, Patch) else action.body
    bound = body | {"metadata": {**(body.get("metadata") or {}), "uid": uids[0]}}
    return replace(action, patch=bound) if isinstance(action, Patch) else replace(action, body=bound)


def _is_of_predecessor(child: Object, owner: Object) -> bool:
    reference = find_controller(child)
    return (
        reference is not None
        and (reference["apiVersion"], reference["kind"]) == (owner["apiVersion"], owner["kind"])
        and reference["name"] == owner["metadata"]["name"]
        and reference["uid"] != owner["metadata"]["uid"]
    )
