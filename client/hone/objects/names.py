"""The kinds of Hone's objects, and the references to objects that users write: NAME or KIND/NAME."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hone_api.layout import FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL

from hone.errors import ClientError


@dataclass(frozen=True)
class Kind:
    """A kind of Hone: its name, its plural in the API, its short name, and the label of its children."""

    name: str
    plural: str
    short: str
    label: str

    @property
    def singular(self) -> str:
        return self.name.lower()


JOB = Kind("FineTuneJob", "finetunejobs", "ftj", FINETUNEJOB_LABEL)
SERVICE = Kind("InferenceService", "inferenceservices", "hisvc", INFERENCESERVICE_LABEL)
KINDS = (JOB, SERVICE)
# Anything else would be another path in a request.
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")


def parse_reference(text: str) -> tuple[Kind | None, str]:
    """Return the kind, None where only a name is given, and the name. Raises ClientError for an unknown kind."""
    prefix, slash, name = text.rpartition("/")
    require_name("NAME", name, "Give the name of an object: `hone list` lists them.")
    if not slash:
        return None, name
    wanted = prefix.lower().partition(".")[0]
    for kind in KINDS:
        if wanted in (kind.singular, kind.plural, kind.short):
            return kind, name
    known = ", ".join(f"{kind.singular}/{name} ({kind.short}/{name})" for kind in KINDS)
    raise ClientError(f"NAME {text}: the kind {prefix!r} is unknown", f"Write one of {known}.")


def require_name(field: str, name: str, remedy: str) -> None:
    """Raise ClientError for what can't be the name of an object."""
    if not name:
        raise ClientError(f"{field} is empty", remedy)
    if not _NAME.fullmatch(name):
        raise ClientError(f"{field} {name!r} is no name: these have lower case letters, digits, '-' and '.'", remedy)


def parse_name(text: str, wanted: Kind, command: str) -> str:
    """Return the name of an object of the only kind that a command is for. Raises ClientError for the other kind."""
    kind, name = parse_reference(text)
    if kind in (None, wanted):
        return name
    raise ClientError(
        f"{text}: `hone {command}` is for a {wanted.name}", f"Name a {wanted.name}: `hone list` lists them."
    )


def choose_kind(name: str, found: Sequence[Kind], namespace: str) -> Kind:
    """Return the only kind that has an object of this name. Raises ClientError for none and for several."""
    if len(found) == 1:
        return found[0]
    if not found:
        raise ClientError(
            f"no FineTuneJob and no InferenceService {name} in namespace {namespace}",
            "Check name, namespace (-n) and context (--context): `hone list` lists the objects.",
        )
    choices = " or ".join(f"{kind.singular}/{name}" for kind in found)
    raise ClientError(
        f"{name} is ambiguous: namespace {namespace} has {' and '.join(k.name for k in found)} {name}",
        f"Write {choices}.",
    )
