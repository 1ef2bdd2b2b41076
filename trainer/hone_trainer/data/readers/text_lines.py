"""Decode lines of text files, each with its number, for the readers of rows.

A file is decoded line by line. Decoding it in larger blocks, as Python's text mode does, detects a wrong byte long
before the line that holds it is read, and so names the wrong line.
"""

import io
from collections.abc import Iterator
from pathlib import Path

from hone_api.reasons import DATASET_INVALID, HoneError

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    r"""Yield the number and the text of each line, with its line end. Lines end with \n, \r\n or \r.

    Raises HoneError DatasetInvalid naming file and line for bytes that are not UTF-8.
    """
    number = 0
    with path.open("rb") as file:
        for line in file:
            text = decode_utf8(line, name, number + 1)
            for piece in io.StringIO(text, newline="") if "\r" in text else (text,):
                number += 1
                yield number, piece


def decode_utf8(data: bytes, name: str, line: int) -> str:
    """Return the text of UTF-8 bytes that begin at a line of the file `name`, without a byte order mark of the file.

    Raises HoneError DatasetInvalid.
    """
    encoding = "utf-8-sig" if line == 1 else "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        before = io.StringIO(error.object[: error.start].decode(encoding), newline=None).read()
        column = len(before.rpartition("\n")[2]) + 1
        utf16 = line == 1 and data.startswith(_UTF16_MARKS)
        raise HoneError(
            DATASET_INVALID,
            f"{name}, line {line + before.count(chr(10))}, column {column} is not UTF-8: {error.reason} "
            f"(byte 0x{error.object[error.start]:02x})",
            remedy=f"Save the file as UTF-8{'; it looks like UTF-16' if utf16 else ''}.",
        ) from None
