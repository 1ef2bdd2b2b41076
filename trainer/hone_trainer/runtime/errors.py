"""Map exceptions of libraries to failures with a name.

Every exception that ends a run passes through `classify_error`: it follows the chain of causes to the first known
failure, and returns UnclassifiedError, with the traceback, when there is none. The reasons are those of
hone_api.reasons.
"""

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import format_exception, walk_tb

from hone_api.byte_sizes import format_bytes
from hone_api.io.terminal import hide_url_credentials, make_encodable
from hone_api.reasons import (
    DATASET_NOT_FOUND,
    DISK_FULL,
    HUB_UNAUTHORIZED,
    HUB_UNREACHABLE,
    INTERNAL_ERROR,
    MODEL_NOT_FOUND,
    OUT_OF_MEMORY,
    VOLUME_ACCESS_DENIED,
    HoneError,
)

# Messages of failed writes that carry no errno: of safetensors, torch.save and datasets.
_DISK_FULL = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
    "unexpected pos",
    "Not enough disk space",
)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Messages of torch on a GPU, of torch on a CPU, and of the operating system.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory")


# The packages that calls to the hub pass through.
_HUB_PACKAGES = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3")


class UnclassifiedError(HoneError):
    """A failure without a name. `traceback` shows its origin.

    Neither has the credentials of URLs, which libraries quote: those of a proxy, or a signature.
    """

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(INTERNAL_ERROR, hide_url_credentials(message))
        self.traceback = make_encodable(hide_url_credentials(traceback))


def classify_error(error: BaseException) -> HoneError:
    """Return the failure that an exception means: itself or the first known one among its causes, else
    UnclassifiedError.
    """
    for cause in _iterate_causes(error):
        if isinstance(cause, HoneError):
            return cause
        found = _classify_known(cause)
        if found:
            return found
    text = " ".join(str(error).split())
    return UnclassifiedError(f"{type(error).__name__}{text and ': '}{text}", "".join(format_exception(error)))


@contextmanager
def translate_disk_full(path: Path) -> Iterator[None]:
    """Within the context, report a full disk with the path to be written and the free space on its volume."""
    try:
        yield
    except Exception as error:
        found = classify_error(error)
        if found.reason is not DISK_FULL or found is error:
            raise
        volume = next(folder for folder in (path, *path.parents) if folder.is_dir())
        usage = shutil.disk_usage(volume)
        room = f"{format_bytes(usage.free)} of {format_bytes(usage.total)} are free"
        raise HoneError(DISK_FULL, f"{path} can't be written: {room} on its volume") from error


def is_connection_error(error: BaseException) -> bool:
    """Return whether a call to the hub failed because the hub can't be reached or answers with a server error."""
    for cause in _iterate_causes(error):
        if isinstance(cause, ConnectionError | TimeoutError | socket.gaierror):  # this includes being kept offline
            return True
        if _is_transport_error(cause):
            return True
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status == 429 or status >= 500
    return False


def make_hub_error(error: Exception, kind: str, name: str, revision: str) -> HoneError:
    """Return the failure that an answer of the hub means for spec.model or spec.dataset (`kind`)."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    missing = MODEL_NOT_FOUND if kind == "model" else DATASET_NOT_FOUND
    where = f"spec.{kind}.name is {name}"
    for cause in _iterate_causes(error):
        if isinstance(cause, GatedRepoError):
            return HoneError(HUB_UNAUTHORIZED, f"{where}, which is gated, and the hub refused access")
        if isinstance(cause, RevisionNotFoundError):
            return HoneError(missing, f"spec.{kind}.revision is {revision}, and {name} has no such revision on the hub")
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in (401, 403):
            return HoneError(
                HUB_UNAUTHORIZED, f"{where}, which does not exist or is private: the hub answered {status}"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return HoneError(missing, f"{where}, and the hub has no such {kind}")
    found = classify_error(error)
    if isinstance(found, UnclassifiedError) and is_connection_error(error):
        found = _make_unreachable_error(error)
    if found.reason is HUB_UNREACHABLE and found is not error:
        return HoneError(HUB_UNREACHABLE, f"{where}, and {found.message[0].lower()}{found.message[1:]}")
    return found


def _classify_known(error: BaseException) -> HoneError | None:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HoneError(DISK_FULL, f"{error.filename or 'A file'} can't be written: {error.strerror}")
    if any(words in text for words in _DISK_FULL):
        return HoneError(DISK_FULL, f"A file can't be written: {text}")
    if denied := make_access_denied_error(error):
        return denied
    # torch's own class by its name: the download of a model runs without torch.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError | OSError) and any(words in text for words in _OUT_OF_MEMORY))
    ):
        return HoneError(OUT_OF_MEMORY, _remove_addresses(text))
    if _is_of_the_hub(error) and is_connection_error(error):
        return _make_unreachable_error(error)
    return None


def make_access_denied_error(error: BaseException) -> HoneError | None:
    """Return the failure that a refused access to a file means, with the user that was refused; None for others."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _DENIED:
        # Devices are not volumes.
        if str(error.filename or "").startswith("/dev/"):
            return None
        what, why = error.filename or "A file", error.strerror
    elif not isinstance(error, OSError) and "Permission denied (os error 13)" in text:
        what, why = "A file", text  # as libraries in Rust report it
    else:
        return None
    groups = ", ".join(str(group) for group in sorted({os.getgid(), *os.getgroups()}))
    found = f"{what}: {why}, for user {os.getuid()} and groups {groups}"
    return HoneError(VOLUME_ACCESS_DENIED, found)


def _make_unreachable_error(error: BaseException) -> HoneError:
    text = hide_url_credentials(" ".join(str(error).split()))  # HF_ENDPOINT may have user and password
    return HoneError(HUB_UNREACHABLE, f"The hub can't be reached: {text}")


def _remove_addresses(text: str) -> str:
    on_cpu = re.search(r"you tried to allocate (\d+) bytes", text)
    if on_cpu:
        return f"The memory for a tensor of {format_bytes(int(on_cpu[1]))} can't be had"
    return text.partition(" If reserved")[0] or "Python got no more memory"


def _is_of_the_hub(error: BaseException) -> bool:
    """Return whether an exception comes from a call to the hub: judge by its class, else by the code that raised it.

    Other pipes and sockets break with the same exceptions of Python.
    """
    modules = [kind.__module__ for kind in type(error).__mro__]
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return any(module.partition(".")[0] in _HUB_PACKAGES for module in (*modules, *frames))


def _is_transport_error(error: BaseException) -> bool:
    """Return whether this is a TransportError, by name: huggingface_hub uses different HTTP clients (httpx, httpx2)."""
    return any(
        kind.__name__ == "TransportError" and kind.__module__.startswith("httpx") for kind in type(error).__mro__
    )


def _iterate_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, as a traceback shows them: what `from None` hides is not a cause."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
