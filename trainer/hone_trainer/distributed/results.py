"""How the processes of a run ended, and which ending is the run's: the cause, not what followed from it. Pure."""

import signal
from dataclasses import dataclass
from typing import Literal

from hone_api.artifacts.manifest import ArtifactManifest
from hone_api.artifacts.trainer_reports import Parameters, Progress
from hone_api.common import ForeignModel
from hone_api.reasons import CATALOGUE, INTERNAL_ERROR, HoneError

from hone_trainer.runtime.errors import UnnamedError
from hone_trainer.runtime.signals import Interrupted


class Word(ForeignModel):
    """What a process says at its end. `reason`, `remedy` are set where it failed, `traceback` where that has no name.

    `killed`: it could not say anything.
    """

    outcome: Literal["Succeeded", "Failed", "Interrupted"]
    reason: str = INTERNAL_ERROR.name
    message: str = ""
    remedy: str = ""
    traceback: str = ""
    killed: bool = False
    progress: Progress | None = None
    parameters: Parameters | None = None
    manifest: ArtifactManifest | None = None


@dataclass(frozen=True)
class Ending:
    """`code` is the exit status, negative for a signal, None when it had to be killed; `at` when it spoke or ended."""

    rank: int
    code: int | None
    at: float
    word: Word | None


def decide(endings: list[Ending]) -> Word:
    """The run's ending. A word counts for more than an exit code: some processes abort after their work is done.

    Of several failures it is the first that has a name: a process whose peer is lost fails too, with none.
    """
    return min(endings, key=lambda ending: (_weight(ending), ending.at)).word or _without_word(endings)


def _weight(ending: Ending) -> int:
    if ending.word is None:
        return 2 if ending.code in (-signal.SIGTERM, -signal.SIGINT) else 5 if ending.code is None else 3
    if ending.word.outcome == "Succeeded":
        return 0
    if ending.word.outcome == "Interrupted":
        return 2
    return 4 if is_unnamed(ending.word) else 1


def _without_word(endings: list[Ending]) -> Word:
    ending = min(endings, key=lambda found: (_weight(found), found.at))
    if ending.code in (-signal.SIGTERM, -signal.SIGINT):
        return Word(outcome="Interrupted")
    if ending.code is None:
        how = "does not end"
    elif ending.code < 0:
        how = f"was killed by {signal.Signals(-ending.code).name}"
    else:
        how = f"ended with exit code {ending.code}"
    hint = ": the host's memory may be full" if ending.code == -signal.SIGKILL else ""
    killed = ending.code is not None and ending.code < 0
    message = f"The process of rank {ending.rank} {how}, without a word{hint}"
    return Word(outcome="Failed", message=message, killed=killed)


def is_unnamed(word: Word) -> bool:
    """Whether it is a failure that may have its cause in another process."""
    return word.outcome == "Failed" and word.reason == INTERNAL_ERROR.name


def cause(words: dict[int, Word], first: int | None) -> int | None:
    """The node that caused the failures of all, where none has a name: one whose process was killed, else the `first`
    that one ended on. None: what another node says is the cause.
    """
    if not all(is_unnamed(word) for word in words.values()):
        return None
    return next((node for node, word in words.items() if word.killed), first)


def settled(own: Word, is_cause: bool, over: str) -> Word:
    """How a node ends, among others: it was interrupted when they caused its failure. `over` says what was heard."""
    if is_cause or not is_unnamed(own):
        return own
    return Word(outcome="Interrupted", message=over, progress=own.progress, parameters=own.parameters)


def raise_failure(word: Word) -> None:
    """Raise what a word says: HoneError, UnnamedError, or Interrupted."""
    if word.outcome == "Interrupted":
        raise Interrupted(word.message)
    if word.outcome == "Failed":
        if word.traceback:
            raise UnnamedError(word.message, word.traceback)
        raise HoneError(CATALOGUE[word.reason], word.message, remedy=word.remedy or None)
