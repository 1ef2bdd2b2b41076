"""The exceptions of the client. All are HoneError: `message` states what was found, `remedy` what to do about it.

HoneError itself has a reason of the catalogue, such as ArtifactCorrupt. A ClientError is a failure of this machine, of
its connection to the cluster, or of a wrong use of the client, which the catalogue does not have.
"""

from hone_api.errors import HoneError as HoneError
from hone_api.errors import Reason

_REASON = Reason("ClientError", None, "The client can't do what it was called for.", "Change what the message names.")


class ClientError(HoneError):
    """A failure of this machine, of its connection to the cluster, or of how the client was called."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(_REASON, message, remedy=remedy)

    def __str__(self) -> str:
        return self.format_message()


class InvalidSpecError(ClientError):
    """A value that an object of Hone can't have, or that Hone can't express."""


class JobFailedError(ClientError):
    """A FineTuneJob that failed. `failure` is the reason of the catalogue, such as OutOfMemory."""

    def __init__(self, failure: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.failure = failure
