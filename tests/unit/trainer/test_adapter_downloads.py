"""Downloads of adapters next to a running engine: what is started and removed, and that the history does not matter."""

import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from hone_api.inferenceservices.adapter_downloads import DownloadFailures, RequestedDownload, RequestedDownloads
from hone_api.reasons import MODEL_NOT_FOUND, STORE_UNREACHABLE, HoneError
from hone_trainer.models.adapter_downloads import (
    LONGEST_RETRY_SECONDS,
    AdapterDownloader,
    FailedDownload,
    download_adapter,
    plan_downloads,
)
from hypothesis import given
from hypothesis import strategies as st

SOURCES = ["s3://models/1/", "s3://models/2/", "s3://models/missing/"]


class Deferred(Executor):
    """Runs what was submitted, on request."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        self.waiting.append(run)
        return future

    def run_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        for run in waiting:
            run()


class Pod:
    """The folders of a pod, whose downloads end at a call of the test."""

    def __init__(self, root: Path) -> None:
        self.root, self.links = root, root / "adapters"
        self.file, self.failures_file = root / "downloads.json", root / "failures.json"
        self.unavailable: set[str] = set()
        self.started: list[str] = []
        self.start()

    def start(self) -> None:
        self.executor = Deferred()
        self.downloader = AdapterDownloader(self.file, self.links, self.failures_file, self.download, self.executor)

    def download(self, download: RequestedDownload) -> Path:
        uri = str(download.source.uri)
        self.started.append(uri)
        if "missing" in uri:
            raise HoneError(MODEL_NOT_FOUND, f"{download.field}.uri is {uri}, and nothing is there")
        if uri in self.unavailable:
            raise HoneError(STORE_UNREACHABLE, f"{download.field}.uri is {uri}, and the store failed")
        folder = self.root / "cache" / uri.split("/")[3]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def request(self, *downloads: tuple[str, str]) -> None:
        """Request downloads by the name of the link and the URI."""
        found = [
            RequestedDownload.model_validate(
                {"field": f"spec.adapters[{place}]", "link": self.links / name, "source": {"uri": uri}}
            )
            for place, (name, uri) in enumerate(downloads)
        ]
        self.file.write_text(RequestedDownloads(downloads=found).model_dump_json(by_alias=True, exclude_none=True))

    def settle(self, now: float) -> None:
        self.downloader.step(now)
        self.executor.run_all()
        self.downloader.step(now)

    def state(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the links, and the failures."""
        failures = DownloadFailures.model_validate_json(self.failures_file.read_bytes()).failures
        return (
            {link.name: link.resolve().name for link in self.links.iterdir()},
            {link.name: failure.message for link, failure in failures.items()},
        )


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_what_is_new_is_downloaded_and_what_is_gone_is_unlinked(pod: Pod) -> None:
    pod.request(("a", SOURCES[0]))
    pod.settle(0)
    assert pod.state() == ({"a": "1"}, {})
    pod.request(("b", SOURCES[1]))
    pod.settle(1)
    assert pod.state() == ({"b": "2"}, {})
    assert pod.started == SOURCES[:2]


def test_a_failure_disturbs_no_other_and_is_tried_again_after_longer_and_longer_pauses(pod: Pod) -> None:
    pod.request(("a", SOURCES[2]), ("b", SOURCES[0]))
    pod.settle(0)
    assert pod.state() == ({"b": "1"}, {"a": "spec.adapters[0].uri is s3://models/missing/, and nothing is there"})
    tried = []
    for second in range(1, 400):
        count = len(pod.started)
        pod.settle(second)
        if len(pod.started) > count:
            tried.append(second)
    assert tried == [15, 45, 105, 225, 345]


def test_a_failed_adapter_that_moved_in_the_spec_is_tried_at_once(pod: Pod) -> None:
    pod.request(("b", SOURCES[0]), ("a", SOURCES[2]))
    pod.settle(0)
    pod.request(("a", SOURCES[2]))
    pod.settle(1)
    assert pod.state()[1]["a"].startswith("spec.adapters[0].uri")


def test_a_download_that_is_no_longer_needed_is_not_linked(pod: Pod) -> None:
    pod.request(("a", SOURCES[0]), ("b", SOURCES[1]))
    pod.downloader.step(0)
    pod.request(("b", SOURCES[1]))
    pod.executor.run_all()
    pod.downloader.step(1)
    assert pod.state() == ({"b": "2"}, {})


def test_a_restarted_process_downloads_only_what_has_no_link(pod: Pod) -> None:
    pod.request(("a", SOURCES[0]), ("b", SOURCES[2]))
    pod.settle(0)
    pod.start()
    pod.settle(1)
    assert pod.started == [SOURCES[0], SOURCES[2], SOURCES[2]]


def test_a_folder_that_was_removed_from_the_cache_is_downloaded_again(pod: Pod) -> None:
    pod.request(("a", SOURCES[0]))
    pod.settle(0)
    (pod.links / "a").resolve().rmdir()
    pod.settle(1)
    assert pod.state() == ({"a": "1"}, {})
    assert len(pod.started) == 2


def test_an_unreadable_list_changes_nothing(pod: Pod, capfd: pytest.CaptureFixture[str]) -> None:
    pod.settle(0)
    assert not pod.failures_file.exists()
    pod.request(("a", SOURCES[0]))
    pod.settle(1)
    pod.file.write_text("{")
    pod.settle(2)
    pod.settle(3)
    assert pod.state() == ({"a": "1"}, {})
    assert capfd.readouterr().err.count("downloads.json can't be read") == 2


def test_a_folder_that_can_not_be_written_does_not_end_the_process(pod: Pod, capfd: pytest.CaptureFixture[str]) -> None:
    pod.request(("a", SOURCES[0]))
    pod.failures_file.mkdir()
    for second in range(3):
        pod.settle(second)
    assert capfd.readouterr().err.count("trying again") == 1
    pod.failures_file.rmdir()
    pod.settle(15)
    assert pod.state() == ({"a": "1"}, {})


def test_new_downloads_come_before_those_that_have_failed() -> None:
    [old, new] = [
        RequestedDownload.model_validate({"field": name, "link": name, "source": {"uri": SOURCES[0]}})
        for name in ("old", "new")
    ]
    failed = FailedDownload(HoneError(MODEL_NOT_FOUND, "x"), "old", 3, 5.0)
    assert plan_downloads([old, new], [], [], {old.link: failed}, 5.0).start == [new, old]
    assert plan_downloads([old, new], [], [], {old.link: failed}, 4.9).start == [new]
    assert plan_downloads([old, new], [old.link], [new.link], {}, 5.0).start == []


@pytest.mark.parametrize("there", [True, False])
def test_a_secret_that_does_not_exist_is_named(tmp_path: Path, there: bool) -> None:
    source = {"uri": SOURCES[0], "secret": {"name": "login"}}
    download = RequestedDownload.model_validate({"field": "spec.adapters[0]", "link": "a", "source": source})
    if there:
        (tmp_path / "login").mkdir()
    with pytest.raises(HoneError, match=r"spec.adapters\[0\].secret.name is login, and its pod has no such Secret"):
        download_adapter(download, tmp_path, tmp_path)


LISTS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(range(3))), max_size=3, unique_by=lambda each: each[0]
)


@given(st.lists(st.tuples(LISTS, st.sampled_from(["nothing", "run", "restart", "outage", "run"])), max_size=6), LISTS)
def test_the_final_state_is_that_of_a_fresh_pod(
    history: list[tuple[list[tuple[str, int]], str]], last: list[tuple[str, int]]
) -> None:
    """After any changes, restarts, outages and interrupted downloads. A link's name has its source in it."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        used, fresh = Pod(Path(one)), Pod(Path(other))
        for second, (listed, event) in enumerate(history):
            used.request(*named(listed))
            used.downloader.step(second)
            if event == "restart":
                used.start()
            elif event != "nothing":
                used.unavailable = set(SOURCES) if event == "outage" else set()
                used.executor.run_all()
                used.downloader.step(second)
        used.unavailable = set()
        end = len(history) + LONGEST_RETRY_SECONDS
        for found in (used, fresh):
            found.request(*named(last))
            found.settle(end)
            found.settle(end + LONGEST_RETRY_SECONDS)
        assert used.state() == fresh.state()


def named(listed: list[tuple[str, int]]) -> list[tuple[str, str]]:
    return [(f"{name}-{source}", SOURCES[source]) for name, source in listed]
