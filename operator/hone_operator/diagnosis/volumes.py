"""Explain why a claim is not bound, and why a volume can't be attached or mounted."""

import re

from hone_api.reasons import POD_NOT_STARTED, VOLUME_IN_USE, HoneError

from hone_operator.objects.resources import Object

MULTI_ATTACH = "Multi-Attach error"

_MISSING = re.compile(r"\b(?P<kind>secret|configmap)s? \"(?P<name>[^\"]+)\" not found", re.IGNORECASE)
_MISSING_KEY = re.compile(r"references? non-existent (?:secret|config) key: (?P<key>\S+)")


def list_claims(pod: Object) -> list[str]:
    """Return the names of the claims that the pod mounts."""
    volumes = pod["spec"].get("volumes") or []
    return [str(v["persistentVolumeClaim"]["claimName"]) for v in volumes if v.get("persistentVolumeClaim")]


def find_claim_of_path(pod: Object, container: str, message: str) -> tuple[str, str, str | None] | None:
    """Return mount path, claim and folder of the mounted claim whose path a sentence names; None without one."""
    spec: Object = next((one for one in pod["spec"]["containers"] if one["name"] == container), {})
    sources = [volume for volume in pod["spec"].get("volumes") or [] if volume.get("persistentVolumeClaim")]
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in sources}
    mounts = [mount for mount in spec.get("volumeMounts") or [] if mount["name"] in claims]
    for mount in sorted(mounts, key=lambda one: -len(one["mountPath"])):
        if re.search(rf"(?<![\w./-]){re.escape(mount['mountPath'])}(?![\w-])", message):
            return mount["mountPath"], claims[mount["name"]], mount.get("subPath")
    return None


def explain_unbound_claim(name: str, claim: Object | None, event: str | None) -> str | None:
    """Return why a claim is not bound, with the newest event about it; None when it is bound."""
    if claim is None:
        return (
            f"PersistentVolumeClaim {name} does not exist: create it, or correct the field of the spec that names it."
        )
    if claim["metadata"].get("deletionTimestamp"):
        return f"PersistentVolumeClaim {name} is being deleted: it goes when the last pod that uses it has ended."
    spec, phase = claim.get("spec") or {}, (claim.get("status") or {}).get("phase", "Pending")
    if phase == "Bound":
        return None
    size = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    kind = f"StorageClass {spec['storageClassName']}" if spec.get("storageClassName") else "no StorageClass"
    modes = ", ".join(spec.get("accessModes") or [])
    state = f"PersistentVolumeClaim {name} ({size}, {modes}, {kind}) is {phase}"
    return f"{state}: {event.rstrip('.')}." if event else f"{state}."


def explain_mount_failure(message: str) -> HoneError:
    """Return the failure for a warning of the kubelet or the attach controller about a pod with a node."""
    if MULTI_ATTACH in message:
        return HoneError(VOLUME_IN_USE, message)
    return HoneError(POD_NOT_STARTED, message, remedy=advise_on_missing_source(message))


def advise_on_missing_source(message: str) -> str | None:
    """Return the remedy for a Secret, ConfigMap or key that the kubelet does not find; None for other messages."""
    if found := _MISSING.search(message):
        kind = "Secret" if found["kind"].lower() == "secret" else "ConfigMap"
        return f"Create {kind} {found['name']}, or correct the field of the spec that names it."
    if "couldn't find key" in message or _MISSING_KEY.search(message):
        return "Add the key to what the message names, or correct the key in the spec."
    return None
