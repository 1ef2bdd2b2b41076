"""Files whose content differs from their name: pointers of Git LFS, compressed files, pages in place of a download.

Each reader refuses such a file as well, but with a message about its first line, which hides the cause. `data.files`
checks every file of a dataset here first, and `base_model` the files of a base model that can't be loaded.
"""

import re
from pathlib import Path

from hone_api.reasons import DATASET_INVALID, HoneError

_POINTER = b"version https://git-lfs.github.com/spec/"
# The largest size of a pointer file.
_POINTER_BYTES = 1024

_UNPACK = "Unpack it, and name what is in it by its own ending."
# The first bytes of a file. Letters alone would match text, such as a header PAR1,PAR2: what follows is matched, too.
_SIGNATURES = [
    (rb"\x1f\x8b\x08", "compressed by gzip", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (rb"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "compressed by bzip2", _UNPACK),
    (rb"PK\x03\x04", "a zip archive, or a table of Excel", "Unpack it; save a table of Excel as CSV in UTF-8."),
    (rb"PAR1\x15", "Parquet", "Rename it to .parquet."),
    (rb"ARROW1\x00\x00", "an Arrow file", "Convert it to Parquet."),
    (rb"SQLite format 3\x00", "a database of SQLite", "Export its table as CSV."),
    (rb"%PDF-[0-9]\.", "a PDF document", "Give its text in rows."),
]
_PAGES = (b"<!doctype html", b"<html")
_TEXT_OF_ANY_KIND = ".txt"


def refuse_disguised(path: Path, name: str) -> None:
    """Raise HoneError DatasetInvalid for a file of rows whose first bytes are those of something else."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return  # its reader reports the failure
    ending = path.suffix.lower()
    if is_pointer(path):
        raise HoneError(
            DATASET_INVALID,
            f"{name} is a pointer of Git LFS and not the file itself",
            remedy="Run `git lfs pull` where it was cloned, and copy the file again.",
        )
    for signature, what, remedy in _SIGNATURES:
        if re.match(signature, start) and (what, ending) != ("Parquet", ".parquet"):
            raise HoneError(DATASET_INVALID, f"{name} is {what}, and its ending is {path.suffix}", remedy=remedy)
    if ending != _TEXT_OF_ANY_KIND and start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        raise HoneError(
            DATASET_INVALID,
            f"{name} is a page in HTML, and its ending is {path.suffix}",
            remedy="Download the file itself: a page that shows it, or asks to log in, was saved in its place.",
        )


def is_pointer(path: Path) -> bool:
    """Return whether a file holds only what Git LFS writes in place of a large file."""
    try:
        with path.open("rb") as file:
            start = file.read(_POINTER_BYTES + 1)
    except OSError:
        return False
    return len(start) <= _POINTER_BYTES and start.startswith(_POINTER) and b"\noid sha256:" in start


def find_pointers(folder: Path) -> list[str]:
    """Return the names of the files in a folder that are pointers of Git LFS."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_file() and is_pointer(path))
    except OSError:
        return []
