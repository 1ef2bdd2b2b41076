"""Failures: a reason of the catalogue in reasons.py, and a message about what was found."""

from dataclasses import dataclass

from hone_api.io.terminal import make_encodable


@dataclass(frozen=True)
class Reason:
    """A kind of failure. `exit_code` is the trainer's or engine's; None: only the operator reports it."""

    name: str
    exit_code: int | None
    cause: str
    remedy: str


class HoneError(Exception):
    """A failure with a reason. `message` states what was found, with the field and its value; the remedy is added.

    Both may quote the name of a file, and fit into JSON even if the name is not UTF-8.
    """

    def __init__(self, reason: Reason, message: str, *, remedy: str | None = None) -> None:
        self.reason = reason
        self.message = make_encodable(message)
        super().__init__(self.message)
        self.remedy = make_encodable(remedy or reason.remedy)

    def format_message(self) -> str:
        """Return the text for the user: what was found, then what to do."""
        return f"{self.message.rstrip('. ')}. {self.remedy}"
