"""What to change where a ResourceQuota or LimitRange of the namespace refuses a child.

In: the message of the API server. Out: the remedy, with the fields that decide the refused amount, and whether it has
to be lower, higher or set at all. Nothing in a spec changes how many objects Hone makes: a quota on their number has
to change, or something else has to go. Next: admission.py, which adds what was refused.
"""

import re
from collections.abc import Iterable

_RANGE = re.compile(
    r"(?P<bound>maximum|minimum) (?P<name>[\w./-]{1,316}) usage per (?P<type>\w{1,63}) is (?P<value>[^ ,]{1,63}?)"
    r"(?:\.  No (?P<lacks>request|limit) is specified|, but (?P<kind>request|limit) is)"
)
_RATIO = re.compile(r"(?P<name>[\w./-]{1,316}) max limit to request ratio per \w{1,63} is (?P<value>[^ ,]{1,63})")
_EXCEEDED = re.compile(r"exceeded quota: [^,]*, requested: (?P<asked>.*?), used: ")
_ASKED = re.compile(r"(?:^|,)(?P<name>[^=,]+)=")
_MUST_SPECIFY = re.compile(r"failed quota: [^:]*: must specify (?P<names>.*)")
_FOR_CONTAINERS = re.compile(r" for: ([^;]*)")
_QUOTA_RESOURCE = re.compile(r"\b(?P<kind>limits|requests)\.(?P<name>[a-z0-9./-]+)|\b(?P<short>cpu|memory)\b")
_OF_CONTAINERS = re.compile(
    r"(?:(?P<kind>limits|requests)\.)?(?P<name>cpu|memory|ephemeral-storage|hugepages-\w{1,20}|[\w.-]{1,253}/[\w.-]{1,63})"
)
_STORAGE = "spec.output.storage.size"
_GPUS = "spec.resources.gpus"
# Devices that spec.resources.gpuResource may name, and quotas on claims for devices. amd.com/nic is none of them.
_DEVICES = re.compile(
    r"amd\.com/(?:gpu|[sdtqc]px_nps\d+)|nvidia\.com/.+|[\w.-]{1,253}/gpu|deviceclass\.resource\.kubernetes\.io/.+|"
    r"[\w.-]{1,253}\.deviceclass\.resource\.k8s\.io/devices"
)
# Hone's own containers, of trainers and engines.
CONTAINERS = frozenset({"trainer", "prepare", "engine", "check", "guard", "download", "place", "adapters"})
_FIXED = f" A FineTuneJob's {_GPUS} can't change: apply it under another name."


def advise_on_quota(message: str) -> str | None:
    """Return the remedy; None where the message is not Kubernetes' own about a quota or LimitRange."""
    return _advise_on_missing(message) or _advise_on_range(message) or _advise_on_exceeded(message)


def find_resource_field(kind: str, name: str) -> str:
    """Return the field of the object that sets a container's request or limit (`kind`) of this resource."""
    if _DEVICES.fullmatch(name):
        return _GPUS
    if name in ("cpu", "memory") and (kind, name) != ("limits", "cpu"):
        return f"spec.resources.{name}"
    # The limit of a device is also its request.
    return f"spec.resources.{'limits' if '/' in name else kind}.{name}"


def join_fields(fields: Iterable[str]) -> str:
    """Return the fields joined for a sentence."""
    *most, last = fields
    return f"{', '.join(most)} and {last}" if most else last


def _advise_on_missing(message: str) -> str | None:
    """Return a remedy with the fields that a ResourceQuota requires of every pod; None for other messages."""
    found = _MUST_SPECIFY.search(message)
    if found is None:
        return None
    fields = dict.fromkeys(
        find_resource_field(one["kind"] or "requests", one["name"] or one["short"])
        for one in _QUOTA_RESOURCE.finditer(found["names"])
    )
    if not fields:
        return None
    remedy = (
        f"The quota requires every container to declare its resources: set {join_fields(fields)}, or give the "
        "namespace a LimitRange with defaults."
    )
    lacking = dict.fromkeys(
        name.strip() for one in _FOR_CONTAINERS.finditer(found["names"]) for name in one[1].split(",")
    )
    others = [name for name in lacking if name and name not in CONTAINERS]
    if not others:
        return remedy
    return f"{remedy} spec.resources does not reach {join_fields(others)}: the LimitRange, or whoever adds that, does."


def _advise_on_range(message: str) -> str | None:
    """Return a remedy that lowers, raises or sets a field for each limit of a LimitRange in the message."""
    steps: dict[str, None] = {}
    for one in _RANGE.finditer(message):
        kind = f"{one['lacks'] or one['kind']}s"
        if one["type"] == "PersistentVolumeClaim":
            lower = "lower" if one["bound"] == "maximum" else "higher"
            steps[f"apply the FineTuneJob under another name with a {lower} {_STORAGE}"] = None
            continue
        field = find_resource_field(kind, one["name"])
        if one["lacks"]:
            steps[f"set {field} to at {'most' if one['bound'] == 'maximum' else 'least'} {one['value']}"] = None
        else:
            steps[f"{'lower' if one['bound'] == 'maximum' else 'raise'} {field}"] = None
    for one in _RATIO.finditer(message):
        request, limit = (f"spec.resources.{kind}.{one['name']}" for kind in ("requests", "limits"))
        steps[f"set {request} and {limit}, the limit at most {one['value']} times the request"] = None
    if not steps:
        return None
    steps["or ask whoever set the LimitRange of the namespace to change it"] = None
    return _join_steps(steps)


def _advise_on_exceeded(message: str) -> str | None:
    """Return a remedy for the exceeded amounts that the spec decides."""
    found = _EXCEEDED.search(message)
    if found is None:
        return None
    fields: dict[str, None] = {}
    has_storage = False
    for one in _ASKED.finditer(found["asked"]):
        name = one["name"].strip()
        if name == "requests.storage" or name.endswith("storageclass.storage.k8s.io/requests.storage"):
            has_storage = True
        elif "storageclass.storage.k8s.io/" not in name and not name.startswith("count/"):
            resource = _OF_CONTAINERS.fullmatch(name)
            if resource:
                fields[find_resource_field(resource["kind"] or "requests", resource["name"])] = None
    steps = [f"lower {join_fields(fields)}"] if fields else []
    if has_storage:
        steps.append(f"apply the FineTuneJob under another name with a lower {_STORAGE}")
    steps += ["remove what else uses the quota", "or ask for a larger one"]
    return _join_steps(steps)


def _join_steps(steps: Iterable[str]) -> str:
    """Return the alternatives as one sentence, and what to know of them."""
    text = ", ".join(steps)
    return f"{text[0].upper()}{text[1:]}.{_FIXED if _GPUS in text else ''} Hone then tries again."
