"""Why the API server does not let a pod, Job or claim be made."""

import re

from hone_api.reasons import POD_NOT_STARTED, QUOTA_EXCEEDED, HoneError

# Names that a controller makes up anew with every try would make every try news.
_FORBIDDEN = re.compile(r'^(?:\w+: )?(?:Error creating: )?([a-z.]+) "[^"]*" is forbidden: ')
_QUOTA = re.compile(
    r"(?:exceeded|failed) quota: |(?:maximum|minimum) [\w./-]+ (?:usage|limit)|[\w./-]+ max limit to request ratio"
)
_ADVICE = (
    (
        r"failed quota: .*must specify",
        "The quota wants every pod to say what it needs: set spec.resources.cpu and memory, or give the namespace a "
        "LimitRange with defaults.",
    ),
    (
        r"violates PodSecurity",
        "Hone's pods keep the level `restricted`: look at what spec.pod or a webhook of the cluster adds to them.",
    ),
    (r"service ?account", "Create the ServiceAccount, or correct spec.pod.serviceAccountName."),
    (r"PriorityClass", "Create the PriorityClass, or correct spec.pod.priorityClassName."),
)


def refused(words: str) -> HoneError:
    """`words` are those of the API server, or of the event of a controller that it refused."""
    what = _FORBIDDEN.match(words)
    said = f"The API server refuses {what[1]}: {words[what.end() :]}" if what else f"Not allowed: {words}"
    remedy = next((advice for pattern, advice in _ADVICE if re.search(pattern, words)), None)
    return HoneError(QUOTA_EXCEEDED if _QUOTA.search(words) else POD_NOT_STARTED, said, remedy=remedy)
