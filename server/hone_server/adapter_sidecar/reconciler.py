"""Make an engine's list of adapters agree with the operator's file.

In: the file, and what the engine lists. For each adapter: verify its files, link them, load it in the engine, and
request one token of it; adapters that the file no longer has are unloaded. Errors are kept for each adapter, reported,
and tried again after RETRY_SECONDS. engine_client.py calls the engine.
"""

import http.client
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from hone_api.inferenceservices.adapter_sync import (
    AdapterError,
    AdapterState,
    KeeperReport,
    WantedAdapter,
    WantedAdapters,
    revision_of,
)
from hone_api.layout import POD_CLAIMS, link_name
from hone_api.reasons import ADAPTER_MISMATCH, ARTIFACT_MISSING, HoneError
from pydantic import ValidationError

from hone_server.adapter_sidecar import link_artifacts
from hone_server.adapter_sidecar.engine_client import EngineApi, Refused
from hone_server.artifacts import verify

# The engine is asked regularly, because after a restart it lists no adapters.
LOOK_EVERY_SECONDS = 2.0
RETRY_SECONDS = 15.0

log = logging.getLogger("hone_server.adapter_sidecar.main")


@dataclass
class Known:
    """The state of one wanted adapter: verified and linked, answered, or failed."""

    wanted: WantedAdapter
    link: str | None = None
    digest: str | None = None
    answered: bool = False
    error: HoneError | None = None
    again_at: float = 0.0


@dataclass
class Keeper:
    """Reconciles the adapters of one engine; `tick` is one pass.

    max_rank: the largest rank that the engine was started for; None: it takes any kind of adapter.
    """

    file: Path
    links: Path
    engine: EngineApi
    max_rank: int | None = None
    claims: Path = Path(POD_CLAIMS)
    started: bool = False
    _revision: str | None = None
    _file: WantedAdapters = field(default_factory=WantedAdapters)
    _known: dict[str, Known] = field(default_factory=dict)
    _listed: dict[str, str | None] = field(default_factory=dict)
    _first: set[str] | None = None
    _served: set[str] = field(default_factory=set)
    _looked: float = 0.0
    _silence: str | None = None

    def tick(self) -> None:
        """Read the file, and every LOOK_EVERY_SECONDS compare it with the engine."""
        news = self._read()
        due = time.monotonic() - self._looked > LOOK_EVERY_SECONDS
        if self._revision is None or not (news or due):
            return
        for known in self._known.values():
            if known.link is None and time.monotonic() >= known.again_at:
                self._prove(known)
        self.started = True
        silence = None
        try:
            self._agree()
        except TimeoutError as error:  # a busy engine still has its adapters
            silence = repr(error)
        except (OSError, http.client.HTTPException, Refused) as error:
            silence, self._listed = repr(error), {}
        if silence != self._silence:
            log.info("the engine %s", f"does not answer: {silence}" if silence else "answers")
        self._silence, self._looked = silence, time.monotonic()

    @property
    def waits_for(self) -> list[str]:
        """Return the names of adapters that are missing for readiness: those wanted at the start or served since."""
        if self._first is None:
            return [str(self.file)]
        has = self._served & self._listed.keys()  # a name that is being replaced answers meanwhile
        return sorted((self._first | self._served) & self._known.keys() - has)

    def report(self) -> KeeperReport:
        states = {name: self._state(known) for name, known in list(self._known.items())}
        return KeeperReport(revision=self._revision, models=sorted(self._listed), adapters=states)

    def _state(self, known: Known) -> AdapterState:
        error = known.error and AdapterError(
            reason=known.error.reason.name, message=known.error.message, remedy=known.error.remedy
        )
        loaded = known.answered and self._listed.get(known.wanted.name) == known.link
        return AdapterState(digest=known.digest or known.wanted.digest, loaded=loaded, error=error)

    def _read(self) -> bool:
        """Read the file; return whether it has changed."""
        try:
            text = self.file.read_text("utf-8")
            if (revision := revision_of(text)) == self._revision:
                return False
            wanted = WantedAdapters.model_validate_json(text)
        except (OSError, ValidationError) as error:
            log.warning("%s can't be read: %s", self.file, error)
            return False
        of_before = self._known if (wanted.base, wanted.base_revision) == self._base else {}
        now_known = {}
        for adapter in wanted.adapters:
            known = of_before.get(adapter.name)
            now_known[adapter.name] = known if known and known.wanted == adapter else Known(adapter)
        self._file, self._revision, self._known = wanted, revision, now_known
        self._served &= now_known.keys()
        if self._first is None:
            self._first = set(self._known)
        log.info("revision %s: %s", revision, ", ".join(self._known) or "no adapters")
        return True

    @property
    def _base(self) -> tuple[str | None, str | None]:
        return self._file.base, self._file.base_revision

    def _prove(self, known: Known) -> None:
        wanted = known.wanted
        folder = Path(wanted.folder)
        if not self._is_mounted(folder):
            return
        try:
            proved, known.digest = verify.proved_adapter(wanted.name, folder, wanted.digest, *self._base)
            if self.max_rank is not None:
                verify.check_kind(wanted.name, proved, self.max_rank)
            link = self.links / link_name(wanted.name, known.digest or revision_of(wanted.folder))
            link_artifacts.make_link(link, proved)
        except (HoneError, OSError) as error:
            self._failed(known, error if isinstance(error, HoneError) else HoneError(ARTIFACT_MISSING, str(error)))
            return
        known.link, known.error = str(link), None

    def _is_mounted(self, folder: Path) -> bool:
        """Return whether the claim of a folder is mounted. If not, a new pod that mounts it replaces this one."""
        if self.claims not in folder.parents:
            return True
        return (self.claims / folder.relative_to(self.claims).parts[0]).is_dir()

    def _agree(self) -> None:
        listed = self.engine.listed()
        for known in self._known.values():
            if known.answered and listed.get(known.wanted.name) != known.link:  # the engine has restarted
                known.link, known.answered = None, False
                self._prove(known)
        for known in self._known.values():
            name, link = known.wanted.name, known.link
            if link is None or listed.get(name) == link or time.monotonic() < known.again_at:
                continue
            try:
                self.engine.load(name, link, replace=name in listed)
            except Refused as error:
                self._failed(known, HoneError(ADAPTER_MISMATCH, f"Adapter {name} is refused by the engine: {error}"))
                continue
            log.info("%s is loaded from %s", name, link)
            listed[name], known.answered, known.error = link, False, None
        for name in [name for name, root in listed.items() if self._is_ours(root) and name not in self._known]:
            try:
                self.engine.unload(name)
            except Refused as error:
                log.warning("%s is still there: %s", name, error)
                continue
            log.info("%s is unloaded", name)
            del listed[name]
        self._listed = listed
        for known in self._known.values():
            if known.link is None or listed.get(known.wanted.name) != known.link:
                continue
            if not known.answered and time.monotonic() >= known.again_at:
                self._hear(known)

    def _hear(self, known: Known) -> None:
        name = known.wanted.name
        try:
            self.engine.answer(name)
        except Refused as error:
            self._failed(known, HoneError(ADAPTER_MISMATCH, f"Adapter {name} is loaded and does not answer: {error}"))
            return
        known.answered, known.error = True, None
        self._served.add(name)

    def _is_ours(self, root: str | None) -> bool:
        return root is not None and Path(root).parent == self.links

    @staticmethod
    def _failed(known: Known, error: HoneError) -> None:
        log.warning("%s: %s", error.reason.name, error.sentence())
        known.error, known.again_at = error, time.monotonic() + RETRY_SECONDS
