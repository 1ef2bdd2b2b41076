"""Explain why the API server refuses to create a pod, Job or claim.

In: the message of the API server, or of the event of a controller that it refused. Out: a failure with a remedy that
names fields of the Hone object. Invalid fields: invalid_fields.py.
"""

import re

from hone_api.layout import MANAGED_BY_LABEL, MANAGER
from hone_api.reasons import POD_NOT_STARTED, QUOTA_EXCEEDED, HoneError, Reason

from hone_operator.diagnosis import quotas
from hone_operator.diagnosis.invalid_fields import explain_invalid
from hone_operator.diagnosis.quotas import find_resource_field, join_fields

# Kubernetes writes this before the message of an event once there were many like it.
_COMBINED = "(combined from similar events): "
# The name is left out: a controller generates a new one for every try, which would make every try a new message.
_FORBIDDEN = re.compile(r'^(?:\w+: )?(?:Error creating: )?([a-z.]+) "[^"]*" is forbidden: ')
_QUOTA = re.compile(
    r"(?:exceeded|failed) quota: |(?:maximum|minimum) [\w./-]+ (?:usage|limit)|[\w./-] max limit to request ratio"
)
# In a sentence of a policy engine, which may write the path of the field or describe it in prose.
_RESOURCE_OF_POLICY = re.compile(
    r"(?P<kind>limits|requests)[./](?P<name>cpu|memory|ephemeral-storage)"
    r"|(?P<resource>cpu|memory|ephemeral[- ]storage)[ -](?P<kinds>(?:resource )?(?:limits?|requests?))",
    re.IGNORECASE,
)
_POLICY = re.compile(r"admission webhook|ValidatingAdmissionPolicy|validation error|denied the request", re.IGNORECASE)
_DIRECTIONS = (
    (
        re.compile(
            r"(?:higher|greater|larger|more) than|\bexceeds?\b|must be (?:less|lower|smaller) than|at most|"
            r"too (?:high|large)",
            re.IGNORECASE,
        ),
        "Lower",
    ),
    (
        re.compile(r"(?:lower|less|smaller) than|below the minimum|at least|too (?:low|small)", re.IGNORECASE),
        "Raise",
    ),
)
_SECURITY = (
    "Set spec.pod.userAndGroup: Platform, and OpenShift chooses the user. Or let an administrator allow a "
    "ServiceAccount the constraint nonroot-v2, which takes Hone's user 65532 "
    "(`oc adm policy add-scc-to-user nonroot-v2 --serviceaccount NAME`), and set spec.pod.serviceAccountName: NAME."
)
_ADVICE = (
    (
        r"failed calling webhook",
        "The webhook does not answer: whoever runs it has to repair it. Nothing has to be changed here; the operator "
        "tries again.",
    ),
    (
        r"status unknown for quota|etcdserver: (?:request timed out|leader changed)|the object has been modified",
        "Nothing has to be changed: the API server was busy, and the operator or a controller tries again.",
    ),
    (r"security context constraint", _SECURITY),
    (
        r"violates PodSecurity",
        "Hone's pods keep the level `restricted`: look at what spec.pod or a webhook of the cluster adds to them.",
    ),
    (
        r"(?:runAsNonRoot|runAsUser|runAsGroup|fsGroup|supplementalGroups|seccompProfile|capabilities|"
        r"readOnlyRootFilesystem|allowPrivilegeEscalation|privileged|hostNetwork|hostPath)\b",
        "Change the field of spec.pod.securityContext or spec.pod.containerSecurityContext that the message names, or "
        "ask for an exception to the policy.",
    ),
    (
        r"service account [^ ]+ was not found|looking up service account|serviceaccount \"[^\"]+\" not found",
        "Create the ServiceAccount, or correct spec.pod.serviceAccountName.",
    ),
    (
        r"PriorityClass",
        "Create the PriorityClass, or correct spec.pod.priorityClassName. Where the object does not set it, a webhook "
        "or policy of the cluster does.",
    ),
    (r"RuntimeClass", "Create the RuntimeClass, or correct spec.pod.runtimeClassName."),
    (r"node label selector conflicts with its namespace", "Correct spec.pod.nodeSelector: the namespace fixes it."),
    (r"tolerations .*conflict with its namespace", "Correct spec.pod.tolerations: the namespace limits them."),
    (r"because it is being terminated", "Nothing has to be changed: the namespace is being deleted."),
    (
        r"\bcannot (?:create|patch|update|delete|get) resource\b",
        "Give the operator this right: `helm upgrade` of the release restores its roles. With rbac.create: false, "
        "whoever made the roles has to add it.",
    ),
)
_LABELS_OF_PODS = (
    "Set the label or annotation in spec.pod.labels or spec.pod.annotations, or ask whoever runs the policy to leave "
    f"out pods with the label {MANAGED_BY_LABEL}={MANAGER}."
)
_POLICY_ON_PODS = (
    "Change the field of spec.pod or spec.resources that decides what the message names, or ask whoever runs the "
    f"policy to leave out pods with the label {MANAGED_BY_LABEL}={MANAGER}."
)
_LABELS = re.compile(r"\b(?:label|annotation)s?\b", re.IGNORECASE)


def explain_refusal(message: str, otherwise: Reason = POD_NOT_STARTED) -> HoneError:
    """Return the failure for a refusal.

    `message`: the message of the API server, or of the event of a controller whose pod it refused. `otherwise`: the
    reason where it is neither a quota nor an invalid field: CHILD_REFUSED where Hone's own write is refused.
    """
    message = message.replace(_COMBINED, "", 1)
    if invalid := explain_invalid(message):
        return invalid
    what = _FORBIDDEN.match(message)
    cause = f"The API server refuses {what[1]}: {message[what.end() :]}" if what else f"Not allowed: {message}"
    remedy = quotas.advise_on_quota(message) or _advise_on_policy(message)
    if remedy is None:
        remedy = next((advice for pattern, advice in _ADVICE if re.search(pattern, message)), None)
    if remedy is None and otherwise is POD_NOT_STARTED and _POLICY.search(message):
        remedy = _LABELS_OF_PODS if _LABELS.search(message) else _POLICY_ON_PODS
    return HoneError(QUOTA_EXCEEDED if _QUOTA.search(message) else otherwise, cause, remedy=remedy)


def _advise_on_policy(message: str) -> str | None:
    """Return a remedy with the fields that a policy requires of every container; None for other messages."""
    if not _POLICY.search(message):
        return None
    fields: dict[str, None] = {}
    for one in _RESOURCE_OF_POLICY.finditer(message):
        name = (one["name"] or one["resource"]).lower().replace(" ", "-")
        kind = (one["kind"] or ("limits" if "limit" in one["kinds"].lower() else "requests")).lower()
        fields[find_resource_field(kind, name)] = None
    if not fields:
        return None
    for pattern, verb in _DIRECTIONS:
        if pattern.search(message):
            return f"{verb} {join_fields(fields)}, or ask whoever runs the policy to change its limit."
    return f"The policy requires containers to declare their resources: set {join_fields(fields)}."
