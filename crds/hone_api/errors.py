"""What a failure is: a reason of the catalogue in reasons.py, and what was found."""

from dataclasses import dataclass

from hone_api.io.terminal import make_encodable


@dataclass(frozen=True)
class Reason:
    """A way to fail. `exit_code` is the trainer's or engine's; None: only the operator sees this one."""

    name: str
    exit_code: int | None
    cause: str
    remedy: str


class HoneError(Exception):
    """A failure with a name. `message` says what was found, with the field and its value; the remedy is added.

    Both may quote the name of a file, and fit into JSON even where that is not UTF-8.
    """

    def __init__(self, reason: Reason, message: str, *, remedy: str | None = None) -> None:
        self.reason = reason
        self.message = make_encodable(message)
        super().__init__(self.message)
        self.remedy = make_encodable(remedy or reason.remedy)

    def sentence(self) -> str:
        """What a user reads: what was found, then what to do."""
        return f"{self.message.rstrip('. ')}. {self.remedy}"
