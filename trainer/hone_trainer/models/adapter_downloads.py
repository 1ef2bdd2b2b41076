"""Download a service's adapters next to its running engine. Does not import torch.

`python -m hone_trainer.models.adapter_downloads` runs in a sidecar, the only container with the adapters' Secrets. In:
downloads.json, which the operator changes at run time. Out: the files in the cache, which HF_HOME names, a link for
each adapter, and the reasons of failures, which are tried again. The links are the only state: a restarted process
continues with the adapters that have none. Next: hone_server.adapter_sidecar, which waits for the links.
"""

import argparse
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hone_api.containers import DOWNLOAD_PROGRAM, format_failure_line
from hone_api.inferenceservices.adapter_downloads import DownloadFailures, RequestedDownload, RequestedDownloads
from hone_api.inferenceservices.adapter_sync import AdapterError
from hone_api.io.durable_files import write_atomically
from hone_api.io.terminal import make_output_safe, print_line
from hone_api.layout import (
    ADAPTER_LINKS,
    POD_ADAPTER_DOWNLOADS,
    POD_CONFIG_MAPS,
    POD_DOWNLOAD_FAILURES,
    POD_DOWNLOADED,
    POD_SECRETS,
)
from hone_api.reasons import INVALID_SPEC, HoneError
from pydantic import ValidationError

from hone_trainer.inputs.manifest import read_secret
from hone_trainer.models.uri_download import download_source, make_link
from hone_trainer.runtime.errors import UnclassifiedError, classify_error

TICK_SECONDS = 0.5
# Downloads at the same time, so that a registry that does not answer delays no other adapter.
MAX_PARALLEL_DOWNLOADS = 4
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 15.0, 120.0


@dataclass(frozen=True)
class FailedDownload:
    """A download that failed `attempts` times. `field`: of the spec, which the error names."""

    error: HoneError
    field: str
    attempts: int
    retry_at: float


@dataclass(frozen=True)
class DownloadPlan:
    """The downloads to start, in this order, and the links to remove."""

    start: list[RequestedDownload]
    remove: set[Path]


def plan_downloads(
    requested: list[RequestedDownload],
    links: Collection[Path],
    running: Collection[Path],
    failures: Mapping[Path, FailedDownload],
    now: float,
) -> DownloadPlan:
    """Return what to do. `links`: those that are there; `running`: the links of downloads that have been started.

    New downloads come before those that have failed. An adapter that moved in the spec is tried again at once, so that
    its error names the present field.
    """
    found = []
    for download in requested:
        failure = failures.get(download.link)
        is_due = failure is None or failure.field != download.field or now >= failure.retry_at
        if is_due and download.link not in links and download.link not in running:
            found.append((failure.attempts if failure else 0, download))
    found.sort(key=lambda entry: entry[0])
    return DownloadPlan([download for _, download in found], set(links) - {each.link for each in requested})


@dataclass
class AdapterDownloader:
    """Downloads what the file requests; `step` is one pass.

    download: returns the folder to link. executor: runs it. `links`: the folder of the links.
    """

    file: Path
    links: Path
    failures_file: Path
    download: Callable[[RequestedDownload], Path]
    executor: Executor
    _requested: list[RequestedDownload] | None = None
    _running: dict[Path, tuple[RequestedDownload, float, Future[Path]]] = field(default_factory=dict)
    _failures: dict[Path, FailedDownload] = field(default_factory=dict)
    _read_error: str | None = None
    _written: str | None = None
    _paused_until: float = 0.0

    def step(self, now: float) -> None:
        """Read the file, link what was downloaded, start downloads that are due, and write down the failures.

        A full disk does not end the process: without this container a pod that serves would no longer be ready.
        """
        if now < self._paused_until:
            return
        try:
            self._reconcile(now)
        except OSError as error:
            print_line(f"warning: {error}; trying again in {FIRST_RETRY_SECONDS:.0f} s")
            self._paused_until = now + FIRST_RETRY_SECONDS

    def _reconcile(self, now: float) -> None:
        self._read_file()
        if self._requested is None:
            return
        self._finish_downloads(now)
        requested = {download.link for download in self._requested}
        self._failures = {link: failure for link, failure in self._failures.items() if link in requested}
        self.links.mkdir(parents=True, exist_ok=True)
        # A link whose folder was removed from the cache needs another download.
        links = [link for link in self.links.iterdir() if link.exists() or link not in requested]
        plan = plan_downloads(self._requested, links, self._running, self._failures, now)
        for link in plan.remove:
            link.unlink()
        for download in plan.start:
            self._running[download.link] = (download, now, self.executor.submit(self.download, download))
        self._write_failures()

    def _read_file(self) -> None:
        error = None
        try:
            requested = RequestedDownloads.model_validate_json(self.file.read_bytes()).downloads
        except (OSError, ValidationError) as found:
            error = f"warning: {self.file} can't be read: {found}"
        else:
            self._requested = requested
        if error and error != self._read_error:
            print_line(error)
        self._read_error = error

    def _finish_downloads(self, now: float) -> None:
        requested = {download.link: download for download in self._requested or []}
        for link, (download, begin, future) in list(self._running.items()):
            if link not in requested:
                future.cancel()  # a download that has begun ends, and is not linked
            if not future.done():
                continue
            del self._running[link]
            if link not in requested:
                continue
            try:
                make_link(download, future.result(), now - begin)
            except Exception as error:
                self._record_failure(download, classify_error(error), now)
            else:
                self._failures.pop(link, None)

    def _record_failure(self, download: RequestedDownload, error: HoneError, now: float) -> None:
        if isinstance(error, UnclassifiedError):
            print_line(error.traceback.rstrip("\n"))
        print_line(format_failure_line(DOWNLOAD_PROGRAM, error))
        earlier = self._failures.get(download.link)
        attempts = earlier.attempts + 1 if earlier else 1
        wait = min(FIRST_RETRY_SECONDS * 2 ** min(attempts - 1, 10), LONGEST_RETRY_SECONDS)
        self._failures[download.link] = FailedDownload(error, download.field, attempts, now + wait)

    def _write_failures(self) -> None:
        failures = {
            link: AdapterError(
                reason=failure.error.reason.name, message=failure.error.message, remedy=failure.error.remedy
            )
            for link, failure in self._failures.items()
        }
        text = DownloadFailures(failures=failures).model_dump_json(by_alias=True)
        if text != self._written:
            write_atomically(self.failures_file, text)
            self._written = text


def download_adapter(download: RequestedDownload, secrets: Path, config_maps: Path) -> Path:
    """Download an adapter with the Secret and certificates that are mounted now, and return its folder.

    A Secret that is created, or changed, while the pod runs arrives in its folder after a minute or more.
    Raises HoneError InvalidSpec for a Secret that is not there, and what `download_source` raises.
    """
    source = download.source
    if source.secret and not _is_mounted(secrets / source.secret.name):
        name, where = source.secret.name, f"{download.field}.secret.name"
        remedy = f"Create Secret {name} in the namespace of the service, or correct {where}."
        raise HoneError(INVALID_SPEC, f"{where} is {name}, and its pod has no such Secret", remedy=remedy)
    return download_source(
        download,
        {source.secret.name: str(secrets / source.secret.name)} if source.secret else {},
        {source.ca_bundle.config_map.name: str(config_maps / source.ca_bundle.config_map.name)}
        if source.ca_bundle
        else {},
    )


def _is_mounted(secret: Path) -> bool:
    """Return whether a Secret's folder has keys. That of one which does not exist has only files of the kubelet."""
    return secret.is_dir() and bool(read_secret(secret))


def main(argv: list[str] | None = None) -> None:
    """Run until SIGTERM, which ends the process at once: downloads continue from what is in the cache."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    arguments = _parse_arguments(argv)
    make_output_safe(is_stdout_a_log=True)
    downloader = AdapterDownloader(
        arguments.file,
        arguments.links,
        arguments.failures,
        partial(download_adapter, secrets=arguments.secrets, config_maps=arguments.config_maps),
        ThreadPoolExecutor(MAX_PARALLEL_DOWNLOADS),
    )
    while True:
        downloader.step(time.monotonic())
        time.sleep(TICK_SECONDS)


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hone_trainer.models.adapter_downloads", description="Download adapters next to an engine."
    )
    parser.add_argument("--file", type=Path, default=Path(POD_ADAPTER_DOWNLOADS), help="the adapters to download")
    parser.add_argument("--links", type=Path, default=Path(POD_DOWNLOADED) / ADAPTER_LINKS, help="folder for links")
    parser.add_argument("--failures", type=Path, default=Path(POD_DOWNLOAD_FAILURES), help="written: what has failed")
    parser.add_argument("--secrets", type=Path, default=Path(POD_SECRETS), help="folder with a folder for each Secret")
    parser.add_argument("--config-maps", type=Path, default=Path(POD_CONFIG_MAPS), help="the same of certificates")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
