"""A short digest of all that a FineTuneJob's children are compared by, so that an unchanged state is judged once.

To see that the children are as they should be, a pass builds all of them and compares every field. Most passes follow
a change of a status, such as that of a pod, and would find what the pass before them found. In: what is observed. Out:
a digest that is the same exactly when that comparison would have the same result. Next: finetunejob/plan.py.
"""

import hashlib
import marshal
from typing import Any

from hone_operator.diagnosis.pod_failure import is_rejected
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob
from hone_operator.objects.resources import Object

# Metadata that changes with every write, of a status as well.
_IGNORED = ("resourceVersion", "managedFields")
# Of marshal: without references, so that equal values are written equally.
_FORMAT = 2


def fingerprint(observed: ObservedFineTuneJob, *, is_prepared: bool) -> bytes:
    """Return a digest of the object and its children, without their statuses but for what decides about the Jobs."""
    parts: Any = (
        is_prepared,
        observed.image,
        observed.gpu,
        list(vars(observed.gpu_access).values()),
        bool(observed.strays),
        observed.claim is not None,
        *map(_content, (observed.owner, observed.config_map, observed.service)),
        *map(_view, (observed.training, observed.preparing)),
    )
    return hashlib.blake2b(marshal.dumps(parts, _FORMAT), digest_size=16).digest()


def _view(view: JobView) -> tuple[object, ...]:
    return _content(view.job), view.has_ended, sum(map(is_rejected, view.pods))


def _content(body: Object | None) -> Object | None:
    """Return an object without its status and what changes with it."""
    if body is None:
        return None
    metadata = {name: value for name, value in body["metadata"].items() if name not in _IGNORED}
    return {name: value for name, value in body.items() if name != "status"} | {"metadata": metadata}
