"""What the pod runs, alone: `wait` ends without readers, `send OFFSET:PATH ...` writes files as tar.

`send` begins a file at the offset, so that a transfer continues; the size in the archive is that of the rest.
"""

import errno
import os
import stat
import sys
import tarfile
import time
from collections.abc import Sequence

ROOT = "/output"
POLL_SECONDS = 5
# Without a sender for this long the reader is gone, and the pod ends.
IDLE_SECONDS = 60
MISSING = 3


def wait() -> None:
    """Return once no other process has run in this container for IDLE_SECONDS."""
    idle = 0
    while idle < IDLE_SECONDS:
        time.sleep(POLL_SECONDS)
        others = sum(name.isdecimal() for name in os.listdir("/proc")) > 1
        idle = 0 if others else idle + POLL_SECONDS


def send(root: str, wanted: Sequence[str]) -> None:
    """Write the files to standard output as a tar stream. A missing file ends it, and the program, without its end.

    A link, and a pipe that would block, count as missing.
    """
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for each in wanted:
            offset, _, path = each.partition(":")
            try:
                descriptor = os.open(os.path.join(root, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "Not a regular file")
            except OSError as error:
                os.write(2, f"{path}: {error.strerror}".encode())
                sys.exit(MISSING)
            with open(descriptor, "rb") as file:
                entry = tarfile.TarInfo(path)
                entry.size = max(0, os.fstat(descriptor).st_size - int(offset))
                file.seek(int(offset))
                archive.addfile(entry, file)


if __name__ == "__main__":
    if sys.argv[1] == "wait":
        wait()
    else:
        send(ROOT, sys.argv[2:])
