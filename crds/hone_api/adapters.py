"""What the operator writes for the keeper beside an engine, and what the keeper tells."""

import hashlib

from pydantic import Field

from hone_api.common import ForeignModel


class WantedAdapter(ForeignModel):
    """An adapter that the engine should have: an artifact tree, or a folder as PEFT saves it, in the pod."""

    name: str
    folder: str
    digest: str | None = None


class WantedAdapters(ForeignModel):
    """The content of adapters.json. `base` and its commit are what the adapters have to have been trained on."""

    base: str | None = None
    base_revision: str | None = None
    adapters: list[WantedAdapter] = Field([])


class AdapterError(ForeignModel):
    """Why an adapter is not there; `reason` is one of the catalogue's."""

    reason: str
    message: str
    remedy: str


class AdapterState(ForeignModel):
    """Whether the engine has the adapter with this digest, and has answered with it."""

    digest: str | None = None
    loaded: bool = False
    error: AdapterError | None = None


class KeeperReport(ForeignModel):
    """What the keeper answers on /adapters. `revision`: of the file that it saw; `models`: what the engine lists.

    An answer without `models` and `adapters` is somebody else's.
    """

    revision: str | None = None
    models: list[str]
    adapters: dict[str, AdapterState]


def revision_of(text: str) -> str:
    """Names one content of adapters.json."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
