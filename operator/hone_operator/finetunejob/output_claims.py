"""Compare an existing output claim with the fields of the object.

A claim is created once and outlives its FineTuneJob, so a job that is applied again may ask for another claim than the
existing one. In: the claim and the job. Out: the differences, for the condition OutputClaim. Next:
finetunejob/plan.py.
"""

from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import CLAIM_DIFFERS, HoneError

from hone_operator.objects.quantity import parse_number
from hone_operator.objects.resources import Object

CLAIM_CONDITION = "OutputClaim"
SHARE = (
    "Make a new FineTuneJob: with a claim in spec.output.claim.name that has accessModes [ReadWriteMany], or with "
    "spec.resources.nodes: 1."
)
_SHARED = {"ReadWriteMany"}


def compare_claim(claim: Object | None, job: FineTuneJob) -> HoneError | None:
    """Return how the claim differs from spec.output.storage and spec.resources.nodes; None when it does not."""
    if claim is None:
        return None
    name, spec = claim["metadata"]["name"], claim.get("spec") or {}
    found = []
    storage = job.spec.output.storage
    if storage and not job.spec.output.claim:
        written = storage.model_fields_set
        size = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
        if "size" in written and size and parse_number(size) < parse_number(storage.size):
            found.append(f"it has {size}, and spec.output.storage.size is {storage.size}")
        kind = spec.get("storageClassName")
        if storage.storage_class_name and kind != storage.storage_class_name:
            found.append(
                f"its StorageClass is {kind}, and spec.output.storage.storageClassName is {storage.storage_class_name}"
            )
        missing = [mode for mode in storage.access_modes if mode not in (spec.get("accessModes") or [])]
        if "access_modes" in written and missing:
            found.append(f"it lacks {', '.join(missing)} of spec.output.storage.accessModes")
    modes = spec.get("accessModes") or []
    if job.spec.resources.nodes > 1 and not _SHARED & set(modes):
        found.append(
            f"its accessModes are [{', '.join(modes)}], and spec.resources.nodes is {job.spec.resources.nodes}"
        )
    if not found:
        return None
    where = f"pvc {name} --namespace {claim['metadata']['namespace']}"
    remedy = SHARE if job.spec.output.claim else CLAIM_DIFFERS.remedy.replace("pvc NAME", where)
    return HoneError(CLAIM_DIFFERS, f"PersistentVolumeClaim {name} is used as it is: {'; '.join(found)}", remedy=remedy)
