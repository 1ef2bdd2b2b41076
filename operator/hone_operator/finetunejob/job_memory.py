"""Facts about FineTuneJobs that the operator keeps from one pass to the next, and that no object holds.

All of them may be lost at any moment: then a pass reads or compares more, and waits again. They are dropped when the
object is gone or has its result.
"""

from datetime import datetime

from hone_operator.finetunejob import sidecars
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.objects.resources import Key, has_observed_status
from hone_operator.reconcile.ownership import is_foreign_claim


class JobMemory:
    """By object: ends of trainers whose pods still run, claims that were not created, digests of settled children."""

    def __init__(self) -> None:
        self._held: dict[Key, dict[str, datetime]] = {}
        self._doubted: set[Key] = set()
        self._settled: dict[Key, bytes] = {}

    def forget(self, key: Key) -> None:
        """Forget an object."""
        self._held.pop(key, None)
        self._doubted.discard(key)
        self._settled.pop(key, None)

    def get_settled_digest(self, key: Key) -> bytes | None:
        """Return the digest with which the children were last found to be as desired (fingerprints.py)."""
        return self._settled.get(key)

    def set_settled_digest(self, key: Key, digest: bytes | None) -> None:
        """Remember such a digest; None changes nothing, since the same state always has the same result."""
        if digest is not None:
            self._settled[key] = digest

    def doubt_claim(self, key: Key) -> None:
        """Remember that the claim could not be created: somebody else's may have its name."""
        self._doubted.add(key)

    def may_claim_be_foreign(self, key: Key, observed: ObservedFineTuneJob) -> bool:
        """Return whether somebody else's claim, which no watch reports, may have the name of the output claim.

        For a new object the creation of its claim finds that out, and no Job is created before.
        """
        if observed.claim is not None:
            return is_foreign_claim(observed.claim, observed.owner)
        is_new = not (has_observed_status(observed.owner) or observed.job or observed.prepare_job)
        return not is_new or key in self._doubted

    def update_held(self, key: Key, observed: ObservedFineTuneJob, now: datetime) -> dict[str, datetime]:
        """Return, by pod uid, since when the operator observes that a trainer has ended and its pod has not."""
        before = self._held.pop(key, {})
        views = (observed.training, observed.preparing)
        uids = [pod["metadata"]["uid"] for view in views for pod in sidecars.find_held_pods(view)]
        if found := {uid: before.get(uid, now) for uid in uids}:
            self._held[key] = found
        return found
