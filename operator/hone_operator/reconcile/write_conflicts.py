"""Children that are written again and again, because another writer changes or deletes them each time.

The first FREE_WRITES repairs are not delayed. After that the pause before the next one doubles, up to a limit, so that
two writers never make the cluster roll out without end. The count is reset after WINDOW_SECONDS without a write, by a
new spec of the owner, and by another owner of the same name. execution.py asks before each write.
"""

from collections import deque
from dataclasses import dataclass, field

from hone_operator.kube.client import FIELD_MANAGER
from hone_operator.objects.resources import Key, Object

FREE_WRITES = 5
WINDOW_SECONDS = 600.0
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 5.0, 300.0

# Annotation of a child: which installation of Hone wrote it last.
INSTALLATION_ANNOTATION = "hone.dev/operator"

# Kind and name.
ChildName = tuple[str, str]
# Uid and generation of the owner.
SpecVersion = tuple[str, int]


@dataclass
class WriteContest:
    """The latest writes of one child. `pause_seconds`: the wait after the last one; 0 until there are too many."""

    writes: deque[float] = field(default_factory=lambda: deque(maxlen=FREE_WRITES + 1))
    pause_seconds: float = 0.0
    manager: str | None = None

    @property
    def not_before(self) -> float:
        """When the next write may be made."""
        return self.writes[-1] + self.pause_seconds

    def is_open(self, now: float) -> bool:
        """Return whether there were too many writes, and the last one was within WINDOW_SECONDS."""
        return self.pause_seconds > 0 and now <= self.writes[-1] + WINDOW_SECONDS


class WriteContests:
    """The writes of all children, by owner."""

    def __init__(self) -> None:
        self._of: dict[Key, dict[ChildName, WriteContest]] = {}
        self._specs: dict[Key, SpecVersion] = {}

    def start_spec(self, key: Key, spec: SpecVersion) -> None:
        """Begin a pass. Reset the counts if the spec changed, or another object has the name."""
        if self._specs.get(key) != spec:
            self._of.pop(key, None)
            self._specs[key] = spec

    def count_write(self, key: Key, child: ChildName, now: float) -> bool:
        """Count a write that changed the child. Return whether there were too many."""
        contest = self._of.setdefault(key, {}).setdefault(child, WriteContest())
        was_open = contest.is_open(now)
        contest.writes.append(now)
        if not was_open and (len(contest.writes) <= FREE_WRITES or contest.writes[0] < now - WINDOW_SECONDS):
            contest.pause_seconds = 0.0
            return False
        contest.pause_seconds = min(max(2 * contest.pause_seconds, FIRST_PAUSE_SECONDS), MAX_PAUSE_SECONDS)
        return True

    def is_suspect(self, key: Key, child: ChildName) -> bool:
        """Return whether one more write of the child may be too many."""
        contest = self._of.get(key, {}).get(child)
        return contest is not None and len(contest.writes) >= FREE_WRITES

    def set_manager(self, key: Key, child: ChildName, manager: str | None) -> None:
        """Remember who else writes the child."""
        contest = self._of[key][child]
        contest.manager = manager or contest.manager

    def is_paused(self, key: Key, child: ChildName, now: float) -> bool:
        """Return whether the child must not be written yet."""
        contest = self._of.get(key, {}).get(child)
        return contest is not None and contest.is_open(now) and now < contest.not_before

    def list_contested(self, key: Key, now: float) -> list[tuple[ChildName, WriteContest]]:
        """Return the children that had too many writes lately."""
        return [(child, found) for child, found in self._of.get(key, {}).items() if found.is_open(now)]

    def get_seconds_left(self, key: Key, now: float) -> float | None:
        """Return after how many seconds something may have changed; None when nothing is contested."""
        contests = [found for _, found in self.list_contested(key, now)]
        moments = [c.not_before if c.not_before > now else c.writes[-1] + WINDOW_SECONDS for c in contests]
        return max(min(moments) - now, 1.0) if moments else None

    def forget(self, key: Key) -> None:
        """Forget the children of an object that is gone."""
        self._of.pop(key, None)
        self._specs.pop(key, None)


def find_contender(found: Object | None, installation: str = "") -> str | None:
    """Return the other writer of the child: another Hone operator, or the newest field manager beyond the status."""
    metadata = (found or {}).get("metadata") or {}
    written_by = (metadata.get("annotations") or {}).get(INSTALLATION_ANNOTATION)
    if written_by and installation and written_by != installation:
        return f"another Hone operator, whose Lease is {written_by}"
    others = [
        each
        for each in metadata.get("managedFields") or []
        if each.get("manager") != FIELD_MANAGER and not each.get("subresource")
    ]
    newest = max(others, key=lambda each: str(each.get("time") or ""), default=None)
    return f"{newest['manager']!r} (its field manager)" if newest and newest.get("manager") else None
