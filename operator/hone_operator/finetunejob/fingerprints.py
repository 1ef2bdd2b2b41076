"""A digest of everything by which a FineTuneJob's children are compared, so that an unchanged state is compared once.

To find drift, a pass builds all children and compares every field. Most passes follow a change of a status, such as
that of a pod, and would find the same as the pass before. In: the snapshot. Out: a digest that is equal exactly when
the comparison would have the same result. Next: finetunejob/plan.py.
"""

import hashlib
import marshal
from typing import Any

from hone_operator.diagnosis.pod_failure import is_rejected
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob
from hone_operator.objects.resources import Object

# Metadata that changes with every write, of a status as well.
_IGNORED_METADATA = ("resourceVersion", "managedFields")
# The version of marshal's format: without references, so that equal values have equal bytes.
_MARSHAL_VERSION = 2


def compute_fingerprint(observed: ObservedFineTuneJob, *, is_prepared: bool) -> bytes:
    """Return a digest of the object and its children. Of their statuses only fields that decide about Jobs count."""
    parts: Any = (
        is_prepared,
        observed.image,
        observed.gpu,
        list(vars(observed.gpu_access).values()),
        bool(observed.stale_pods),
        observed.claim is not None,
        *map(_select_content, (observed.owner, observed.config_map, observed.service)),
        *map(_select_view, (observed.training, observed.preparing)),
    )
    return hashlib.blake2b(marshal.dumps(parts, _MARSHAL_VERSION), digest_size=16).digest()


def _select_view(view: JobView) -> tuple[object, ...]:
    return _select_content(view.job), view.has_ended, sum(map(is_rejected, view.pods))


def _select_content(body: Object | None) -> Object | None:
    """Return an object without its status and the metadata that changes with it."""
    if body is None:
        return None
    metadata = {name: value for name, value in body["metadata"].items() if name not in _IGNORED_METADATA}
    return {name: value for name, value in body.items() if name != "status"} | {"metadata": metadata}
