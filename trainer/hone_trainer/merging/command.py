"""The `merge` command: check what needs no torch, then merge.

`source` finds and verifies the adapter; `write` loads the base model, merges, compares and saves.
"""

import errno
import logging
import os
from pathlib import Path

from hone_api.io.terminal import print_line
from hone_api.reasons import DISK_FULL, INVALID_SPEC, HoneError

from hone_trainer.merging.source import find_adapter
from hone_trainer.runtime import environment
from hone_trainer.runtime.options import MergeOptions


def merge_adapter_into_base(options: MergeOptions) -> None:
    """Write the base model with the adapter merged into it to `out`, which is complete or absent at any time.

    Raises HoneError ArtifactMissing, ArtifactCorrupt, ModelNotFound, ModelInvalid, HubUnauthorized, HubUnreachable,
    AdapterMismatch, MergeMismatch, DiskFull, and InvalidSpec for wrong options.
    """
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, format="%(levelname)s %(message)s")
    out = options.out
    if os.path.lexists(out):
        raise HoneError(INVALID_SPEC, f"OUT is {out}, which exists", remedy="Choose another folder, or remove it.")
    adapter = find_adapter(options.adapter, options.base)
    check_output_path(out)
    if adapter.cache and not os.environ.keys() & {"HF_HOME", "HF_HUB_CACHE"}:
        # Only its downloaded models: HF_HOME would also bring a token, and a folder of Python modules.
        os.environ["HF_HUB_CACHE"] = str(adapter.cache / "hub")
    environment.limit_devices(os.environ, 0)  # a sum of matrices, each used once, gains nothing from a GPU
    print_line(f"base model {adapter.base}{f' at commit {adapter.revision}' if adapter.revision else ''}")
    print_line(f"adapter {adapter.folder}")

    from hone_trainer.merging.write import write_merged_model
    from hone_trainer.runtime.errors import classify_error

    try:
        write_merged_model(adapter, options)
    except Exception as error:
        failure = classify_error(error)
        if failure.reason is DISK_FULL:
            raise HoneError(DISK_FULL, failure.message, remedy=f"Make room where {out} is, and merge again.") from error
        raise
    size = sum(path.stat().st_size for path in out.iterdir())
    print_line(f"merged into {out}: {size / 1e9:.3g} GB")


def check_output_path(out: Path) -> None:
    """Check that `out` can be written, and leave nothing behind: merging may take an hour.

    Raises HoneError InvalidSpec, and OSError for a full disk.
    """
    made: list[Path] = []
    try:
        for folder in (*reversed(out.parents), out.with_name(f".{out.name}.tmp")):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        found = f"OUT is {out}, which can't be written: {error.strerror}"
        raise HoneError(INVALID_SPEC, found, remedy="Choose a folder that can be written.") from error
    finally:
        for folder in reversed(made):
            folder.rmdir()
