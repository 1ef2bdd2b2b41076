"""Find the field of a Hone object that is wrong when Kubernetes refuses a child as invalid.

In: the message of the API server, which names fields of the Job, Deployment or pod that Hone made from the spec. Out:
the failure, with the field that the user wrote. Only a change of the spec helps, so the object is stalled. Refusals by
admission: admission.py.
"""

import re

from hone_api.pods.pod_options import PodOptions
from hone_api.reasons import CHILD_INVALID, HoneError

MAX_MESSAGE_CHARACTERS = 4096
MAX_FIELDS = 3

# The name is left out: a controller generates a new one for every try, which would make every try a new message.
_INVALID = re.compile(r'(?:\w{1,60}: |Error creating: ){0,2}(?P<kind>\w{1,60})[\w.-]{0,200} "[^"]{0,253}" is invalid: ')
_FIELD = re.compile(
    r"(?<![\w.])(?P<path>(?:spec|metadata)\.[^\s:]{1,400}): "
    r"(?:Invalid value|Required value|Duplicate value|Unsupported value|Not found|Forbidden|Too long|Too many)"
)
_OF_POD = (*("spec.template.spec.", "spec.template.", "spec."), "metadata.")
# Fields of Hone's own containers. Items of users stand between Hone's own, so an index in such a list is no help.
_OF_CONTAINER = {
    "env": "spec.pod.env",
    "envFrom": "spec.pod.envFrom",
    "volumeMounts": "spec.pod.volumeMounts",
    "securityContext": "spec.pod.containerSecurityContext",
    "resources": "spec.resources",
    "image": "spec.pod.image",
    "imagePullPolicy": "spec.pod.imagePullPolicy",
    "args": "spec.extraArgs",
}
# Lists of the pod that begin with the user's items, so that the index is the user's.
_LISTS_OF_USERS = ("initContainers", "topologySpreadConstraints", "hostAliases")
_OPTIONS = frozenset(str(field.alias) for field in PodOptions.model_fields.values())


def explain_invalid(message: str) -> HoneError | None:
    """Return the failure for the message; None when it is not about a field that the spec can correct."""
    message = message[:MAX_MESSAGE_CHARACTERS]
    found = _INVALID.match(message)
    if found is None or "field is immutable" in message:
        return None
    kind, rest = found["kind"], message[found.end() :]
    fields = dict.fromkeys(field for each in _FIELD.finditer(rest) if (field := find_user_field(each["path"])))
    remedy = None
    if fields:
        named = list(fields)[:MAX_FIELDS]
        remedy = f"Correct {named[0] if len(named) == 1 else ', '.join(named[:-1]) + ' and ' + named[-1]}"
        adds = ", or what a LimitRange or a webhook of the cluster adds to Hone's pods" if kind == "Pod" else ""
        remedy += f"{adds}."
    return HoneError(CHILD_INVALID, f"Kubernetes refuses the {kind} as invalid: {rest}", remedy=remedy)


def find_user_field(path: str) -> str | None:
    """Return the field of the Hone object that sets a field of a child; None when no field does."""
    prefix = next((prefix for prefix in _OF_POD if path.startswith(prefix)), None)
    if prefix is None:
        return None
    rest = path.removeprefix(prefix).removeprefix("metadata.")
    name, dot, inner = re.sub(r"^(\w+)\[\d+\]", r"\1", rest).partition(".")
    if name in ("labels", "annotations"):
        return f"spec.pod.{name}"
    if name == "containers":
        of_container = re.match(r"\w+", inner)
        return _OF_CONTAINER.get(of_container[0]) if of_container else None
    if name in _LISTS_OF_USERS:
        return f"spec.pod.{rest}"
    option = re.match(r"\w+", name)
    return f"spec.pod.{name}{dot}{inner}" if option and option[0] in _OPTIONS else None
