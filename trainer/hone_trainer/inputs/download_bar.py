"""The bar of a download from the hub, which also reports its bytes, rate and time left as those of other sources."""

from typing import Any

from huggingface_hub.utils.tqdm import tqdm

from hone_trainer.progress.activity import report_activity, set_activity
from hone_trainer.progress.meter import Meter

# The bar of huggingface_hub that counts the bytes which are on the disk. It has others, of files and of the network.
_BYTES_ON_DISK = "huggingface_hub.snapshot_download"


class DownloadBar(tqdm):
    """A bar of huggingface_hub. Where it isn't shown, its bytes are printed, a line every few seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        counts_bytes = options.get("name") == _BYTES_ON_DISK and options.get("unit") == "B"
        self._meter = Meter(0, 0, report_activity if self.disable else set_activity) if counts_bytes else None

    def update(self, n: float | None = 1) -> bool | None:
        """Count bytes."""
        if self._meter:
            self._meter.total = int(self.total or 0)
            self._meter.add(int(n or 0))
        shown: bool | None = super().update(n)
        return shown
