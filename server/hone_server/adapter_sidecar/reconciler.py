"""Make an engine's list of adapters agree with the operator's file.

In: the file, and what the engine lists. For each adapter: verify its files, link them, load it in the engine, and
request one token of it; adapters that the file no longer has are unloaded. Errors are kept for each adapter, reported,
and tried again after RETRY_SECONDS. An adapter that another container downloads is waited for, and the failure of its
download is reported as its own. engine_client.py calls the engine.
"""

import http.client
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from hone_api.inferenceservices.adapter_downloads import DownloadFailures
from hone_api.inferenceservices.adapter_sync import (
    AdapterError,
    AdapterState,
    AdapterSyncReport,
    WantedAdapter,
    WantedAdapters,
    make_revision,
)
from hone_api.layout import POD_CLAIMS, POD_DOWNLOAD_FAILURES, make_link_name
from hone_api.reasons import ADAPTER_MISMATCH, ARTIFACT_MISSING, CATALOGUE, INTERNAL_ERROR, HoneError
from pydantic import ValidationError

from hone_server.adapter_sidecar import link_artifacts
from hone_server.adapter_sidecar.engine_client import EngineClient, EngineRefusedError
from hone_server.artifacts import verify

# The engine is asked regularly, because after a restart it lists no adapters.
SYNC_SECONDS = 2.0
RETRY_SECONDS = 15.0

log = logging.getLogger("hone_server.adapter_sidecar.main")


@dataclass
class AdapterRecord:
    """The state of one wanted adapter: verified and linked, answered, or failed."""

    wanted: WantedAdapter
    link: str | None = None
    digest: str | None = None
    is_downloading: bool = False
    has_answered: bool = False
    error: HoneError | None = None
    retry_at: float = 0.0


@dataclass
class AdapterReconciler:
    """Reconciles the adapters of one engine; `reconcile` is one pass.

    max_rank: the largest rank that the engine was started for; None: it takes any kind of adapter.
    """

    file: Path
    links: Path
    engine: EngineClient
    max_rank: int | None = None
    claims: Path = Path(POD_CLAIMS)
    download_failures: Path = Path(POD_DOWNLOAD_FAILURES)
    has_started: bool = False
    _revision: str | None = None
    _file: WantedAdapters = field(default_factory=WantedAdapters)
    _records: dict[str, AdapterRecord] = field(default_factory=dict)
    _listed: dict[str, str | None] = field(default_factory=dict)
    _first_wanted: set[str] | None = None
    _served: set[str] = field(default_factory=set)
    _synced_at: float = 0.0
    _engine_error: str | None = None

    def reconcile(self) -> None:
        """Read the file, and every SYNC_SECONDS compare it with the engine."""
        has_changed = self._read_file()
        due = time.monotonic() - self._synced_at > SYNC_SECONDS
        if self._revision is None or not (has_changed or due):
            return
        for record in self._records.values():
            if record.link is None and time.monotonic() >= record.retry_at:
                self._verify_and_link(record)
        self.has_started = True
        engine_error = None
        try:
            self._sync_engine()
        except TimeoutError as error:  # a busy engine still has its adapters
            engine_error = repr(error)
        except (OSError, http.client.HTTPException, EngineRefusedError) as error:
            engine_error, self._listed = repr(error), {}
        if engine_error != self._engine_error:
            log.info("the engine %s", f"does not answer: {engine_error}" if engine_error else "answers")
        self._engine_error, self._synced_at = engine_error, time.monotonic()

    @property
    def missing_adapters(self) -> list[str]:
        """Return the names of adapters that are missing for readiness: those wanted at the start or served since."""
        if self._first_wanted is None:
            return [str(self.file)]
        has = self._served & self._listed.keys()  # a name that is being replaced answers meanwhile
        return sorted((self._first_wanted | self._served) & self._records.keys() - has)

    def make_report(self) -> AdapterSyncReport:
        states = {name: self._make_state(record) for name, record in list(self._records.items())}
        return AdapterSyncReport(revision=self._revision, models=sorted(self._listed), adapters=states)

    def _make_state(self, record: AdapterRecord) -> AdapterState:
        error = record.error and AdapterError(
            reason=record.error.reason.name, message=record.error.message, remedy=record.error.remedy
        )
        loaded = record.has_answered and self._listed.get(record.wanted.name) == record.link
        return AdapterState(
            digest=record.digest or record.wanted.digest,
            loaded=loaded,
            downloading=record.is_downloading,
            error=error,
        )

    def _read_file(self) -> bool:
        """Read the file; return whether it has changed."""
        try:
            text = self.file.read_text("utf-8")
            if (revision := make_revision(text)) == self._revision:
                return False
            listed = WantedAdapters.model_validate_json(text)
        except (OSError, ValidationError) as error:
            log.warning("%s can't be read: %s", self.file, error)
            return False
        previous = self._records if (listed.base, listed.base_revision) == self._base else {}
        records = {}
        for adapter in listed.adapters:
            record = previous.get(adapter.name)
            records[adapter.name] = record if record and record.wanted == adapter else AdapterRecord(adapter)
        self._file, self._revision, self._records = listed, revision, records
        self._served &= records.keys()
        if self._first_wanted is None:
            self._first_wanted = set(self._records)
        log.info("revision %s: %s", revision, ", ".join(self._records) or "no adapters")
        return True

    @property
    def _base(self) -> tuple[str | None, str | None]:
        return self._file.base, self._file.base_revision

    def _verify_and_link(self, record: AdapterRecord) -> None:
        adapter = record.wanted
        folder = adapter.path
        if not self._is_mounted(folder):
            return
        if adapter.download:
            if not folder.is_dir():
                self._wait_for_download(record)
                return
            # The link is removed when the file no longer has the adapter, and the engine may read the folder again.
            record.is_downloading, folder = False, folder.resolve()
        try:
            proved, record.digest = verify.verify_adapter(adapter.name, folder, adapter.digest, *self._base)
            if self.max_rank is not None:
                verify.require_loadable_kind(adapter.name, proved, self.max_rank)
            link = self.links / make_link_name(adapter.name, record.digest or make_revision(str(adapter.path)))
            link_artifacts.make_link(link, proved)
        except (HoneError, OSError) as error:
            self._record_failure(
                record, error if isinstance(error, HoneError) else HoneError(ARTIFACT_MISSING, str(error))
            )
            return
        record.link, record.error = str(link), None

    def _wait_for_download(self, record: AdapterRecord) -> None:
        """Take over why the download has failed; without a failure it is going on."""
        try:
            found = DownloadFailures.model_validate_json(self.download_failures.read_bytes()).failures
        except (OSError, ValidationError):  # the container that writes it has just started
            found = {}
        failure = found.get(record.wanted.path)
        record.is_downloading = failure is None
        record.error = (
            HoneError(CATALOGUE.get(failure.reason, INTERNAL_ERROR), failure.message, remedy=failure.remedy)
            if failure
            else None
        )

    def _is_mounted(self, folder: Path) -> bool:
        """Return whether the claim of a folder is mounted. If not, a new pod that mounts it replaces this one."""
        if self.claims not in folder.parents:
            return True
        return (self.claims / folder.relative_to(self.claims).parts[0]).is_dir()

    def _sync_engine(self) -> None:
        listed = self.engine.list_models()
        for record in self._records.values():
            if record.has_answered and listed.get(record.wanted.name) != record.link:  # the engine has restarted
                record.link, record.has_answered = None, False
                self._verify_and_link(record)
        for record in self._records.values():
            name, link = record.wanted.name, record.link
            if link is None or listed.get(name) == link or time.monotonic() < record.retry_at:
                continue
            try:
                self.engine.load_adapter(name, link, replace=name in listed)
            except EngineRefusedError as error:
                self._record_failure(
                    record, HoneError(ADAPTER_MISMATCH, f"Adapter {name} is refused by the engine: {error}")
                )
                continue
            log.info("%s is loaded from %s", name, link)
            listed[name], record.has_answered, record.error = link, False, None
        for name in [name for name, root in listed.items() if self._is_ours(root) and name not in self._records]:
            try:
                self.engine.unload_adapter(name)
            except EngineRefusedError as error:
                log.warning("%s is still there: %s", name, error)
                continue
            log.info("%s is unloaded", name)
            del listed[name]
        self._listed = listed
        for record in self._records.values():
            if record.link is None or listed.get(record.wanted.name) != record.link:
                continue
            if not record.has_answered and time.monotonic() >= record.retry_at:
                self._probe(record)

    def _probe(self, record: AdapterRecord) -> None:
        name = record.wanted.name
        try:
            self.engine.generate_one_token(name)
        except EngineRefusedError as error:
            self._record_failure(
                record, HoneError(ADAPTER_MISMATCH, f"Adapter {name} is loaded and does not answer: {error}")
            )
            return
        record.has_answered, record.error = True, None
        self._served.add(name)

    def _is_ours(self, root: str | None) -> bool:
        return root is not None and Path(root).parent == self.links

    @staticmethod
    def _record_failure(record: AdapterRecord, error: HoneError) -> None:
        log.warning("%s: %s", error.reason.name, error.format_message())
        record.error, record.retry_at = error, time.monotonic() + RETRY_SECONDS
