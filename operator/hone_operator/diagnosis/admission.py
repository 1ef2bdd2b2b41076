"""Explain why the API server refuses to create a pod, Job or claim.

In: the message of the API server, or of the event of a controller that it refused. Out: a failure with a remedy that
names fields of the Hone object. Invalid fields: invalid_fields.py.
"""

import re

from hone_api.reasons import POD_NOT_STARTED, QUOTA_EXCEEDED, HoneError

from hone_operator.diagnosis.invalid_fields import explain_invalid

# Kubernetes writes this before the message of an event once there were many like it.
_COMBINED = "(combined from similar events): "
# The name is left out: a controller generates a new one for every try, which would make every try a new message.
_FORBIDDEN = re.compile(r'^(?:\w+: )?(?:Error creating: )?([a-z.]+) "[^"]*" is forbidden: ')
_QUOTA = re.compile(
    r"(?:exceeded|failed) quota: |(?:maximum|minimum) [\w./-]+ (?:usage|limit)|[\w./-] max limit to request ratio"
)
_MUST_SPECIFY = re.compile(r"failed quota: [^:]*: must specify (?P<names>.*)")
_QUOTA_RESOURCE = re.compile(r"\b(?P<kind>limits|requests)\.(?P<name>[a-z0-9./-]+)|\b(?P<short>cpu|memory)\b")
# In a sentence of a policy engine, which may write the path of the field or describe it in prose.
_RESOURCE_OF_POLICY = re.compile(
    r"(?P<kind>limits|requests)[./](?P<name>cpu|memory|ephemeral-storage)"
    r"|(?P<resource>cpu|memory|ephemeral[- ]storage)[ -](?P<kinds>(?:resource )?(?:limits?|requests?))",
    re.IGNORECASE,
)
_POLICY = re.compile(r"admission webhook|ValidatingAdmissionPolicy|validation error|denied the request", re.IGNORECASE)
_SECURITY = (
    "Set spec.pod.userAndGroup: Platform, and OpenShift chooses the user. Or let an administrator allow a "
    "ServiceAccount the constraint nonroot-v2, which takes Hone's user 65532 "
    "(`oc adm policy add-scc-to-user nonroot-v2 --serviceaccount NAME`), and set spec.pod.serviceAccountName: NAME."
)
_ADVICE = (
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
    (r"PriorityClass", "Create the PriorityClass, or correct spec.pod.priorityClassName."),
    (
        r"failed calling webhook",
        "The webhook does not answer: whoever runs it has to repair it. Nothing has to be changed here; the operator "
        "tries again.",
    ),
)


def refused(words: str) -> HoneError:
    """Return the failure for a refusal. `words`: the message of the API server, or of a refused controller's event."""
    words = words.replace(_COMBINED, "", 1)
    if invalid := explain_invalid(words):
        return invalid
    what = _FORBIDDEN.match(words)
    said = f"The API server refuses {what[1]}: {words[what.end() :]}" if what else f"Not allowed: {words}"
    remedy = _of_quota(words) or _of_policy(words)
    if remedy is None:
        remedy = next((advice for pattern, advice in _ADVICE if re.search(pattern, words)), None)
    return HoneError(QUOTA_EXCEEDED if _QUOTA.search(words) else POD_NOT_STARTED, said, remedy=remedy)


def field_of_resource(kind: str, name: str) -> str:
    """Return the field of the object that sets a container's request or limit (`kind`) of this resource."""
    if name in ("cpu", "memory") and (kind, name) != ("limits", "cpu"):
        return f"spec.resources.{name}"
    return f"spec.resources.{kind}.{name}"


def _of_quota(words: str) -> str | None:
    """Return a remedy with the fields that a ResourceQuota requires of every pod; None for other messages."""
    found = _MUST_SPECIFY.search(words)
    if found is None:
        return None
    fields = dict.fromkeys(
        field_of_resource(one["kind"] or "requests", one["name"] or one["short"])
        for one in _QUOTA_RESOURCE.finditer(found["names"])
    )
    if not fields:
        return None
    return (
        f"The quota wants every container to say what it needs: set {_listed(fields)}, or give the namespace a "
        "LimitRange with defaults."
    )


def _of_policy(words: str) -> str | None:
    """Return a remedy with the fields that a policy requires of every container; None for other messages."""
    if not _POLICY.search(words):
        return None
    fields: dict[str, None] = {}
    for one in _RESOURCE_OF_POLICY.finditer(words):
        name = (one["name"] or one["resource"]).lower().replace(" ", "-")
        kind = (one["kind"] or ("limits" if "limit" in one["kinds"].lower() else "requests")).lower()
        fields[field_of_resource(kind, name)] = None
    return f"The policy wants containers to say what they need: set {_listed(fields)}." if fields else None


def _listed(fields: dict[str, None]) -> str:
    names = list(fields)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
