"""Results of the processes of a run, and the choice of the run's result: the cause, not its consequences. Pure.

`launcher` calls `decide` for the processes of its node; `coordinator` calls `cause` for the results of all nodes.
"""

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
    """The result that a process writes when it ends.

    `reason` and `remedy` are set for a failure, `traceback` for one without a name. `killed`: it couldn't write a
    result.
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
    """How one process ended: `code` is the exit status, negative for a signal, None when it had to be killed.

    `at` is the time in seconds at which it wrote its result or ended.
    """

    rank: int
    code: int | None
    at: float
    word: Word | None


def decide(endings: list[Ending]) -> Word:
    """Return the run's result. A written result outranks an exit code: some processes abort after their work is done.

    Of several failures, return the first that has a name: a process that loses its peer fails too, without a name.
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
    """Return whether the result is a failure whose cause may be in another process."""
    return word.outcome == "Failed" and word.reason == INTERNAL_ERROR.name


def cause(words: dict[int, Word], first: int | None) -> int | None:
    """Return the node that caused all failures when none has a name: one with a killed process, else `first`.

    `first` is the node on which a process ended first. None: the result of some node is no failure, or one with a name.
    """
    if not all(is_unnamed(word) for word in words.values()):
        return None
    return next((node for node, word in words.items() if word.killed), first)


def settled(own: Word, is_cause: bool, over: str) -> Word:
    """Return this node's result: Interrupted when another node caused its failure. `over` is why the run is over."""
    if is_cause or not is_unnamed(own):
        return own
    return Word(outcome="Interrupted", message=over, progress=own.progress, parameters=own.parameters)


def raise_failure(word: Word) -> None:
    """Raise the failure in a result: HoneError, UnnamedError, or Interrupted."""
    if word.outcome == "Interrupted":
        raise Interrupted(word.message)
    if word.outcome == "Failed":
        if word.traceback:
            raise UnnamedError(word.message, word.traceback)
        raise HoneError(CATALOGUE[word.reason], word.message, remedy=word.remedy or None)
