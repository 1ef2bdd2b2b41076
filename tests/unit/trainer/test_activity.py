"""The line about what a preparation does: bytes, rate and time left, and how it gets into the trainer's report."""

import pytest
from hone_api.artifacts.trainer_reports import LONGEST_ACTIVITY, ProgressReport
from hone_trainer.inputs.download_bar import DownloadBar
from hone_trainer.progress import meter
from hone_trainer.progress.activity import clear_activity, read_activity, report_activity
from hone_trainer.progress.state import ProgressState
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars


def test_a_line_is_reported_until_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with clear_activity():
        report_activity("downloading\x1b[31m" + "x" * 2 * LONGEST_ACTIVITY)
        body = ProgressState().make_report().model_dump_json(by_alias=True)
    activity = ProgressReport.model_validate_json(body).activity or ""
    assert activity.startswith("downloading\\x1b[31mxxx")
    assert len(activity) == LONGEST_ACTIVITY
    assert read_activity() is None
    assert ProgressState().make_report().activity is None
    assert "downloading" in capsys.readouterr().err


def test_the_line_has_bytes_rate_and_time_left() -> None:
    lines, now = [], [0.0]
    count = meter.Meter(1000, 100, lines.append, lambda: now[0])
    for at, new in ((5.0, 150), (20.0, 150), (25.0, 100)):
        now[0] = at
        count.add(new)
    assert lines == ["downloaded 400 bytes of 1000 bytes, 15 bytes/s, 40 s left"]


@pytest.mark.parametrize("is_shown", [False, True])
def test_a_download_from_the_hub_reports_the_same(
    is_shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What huggingface_hub does: it makes its bars, adds the size of each file to the total, and updates them."""
    monkeypatch.setattr(meter, "INTERVAL_SECONDS", 0.0)
    (enable_progress_bars if is_shown else disable_progress_bars)()
    try:
        with clear_activity():
            network = DownloadBar(total=0, unit="B", name="huggingface_hub.snapshot_download.transfer")
            disk = DownloadBar(total=0, unit="B", name="huggingface_hub.snapshot_download")
            for size in (3072, 1024):
                disk.total = (disk.total or 0) + size
            network.update(50)
            assert read_activity() is None
            disk.update(2048)
            assert (read_activity() or "").startswith("downloaded 2 KiB of 4 KiB, ")
            for bar in (network, disk):
                bar.close()
    finally:
        enable_progress_bars()
    assert ("downloaded 2 KiB" in capsys.readouterr().err) is not is_shown
