"""The messages between the operator and an engine's adapter sidecar: wanted adapters, and the sidecar's report."""

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from hone_api.common import ForeignModel
from hone_api.io.terminal import make_encodable


class WantedAdapter(ForeignModel):
    """An adapter that the engine should have: an artifact tree, or a folder as PEFT saves it, in the pod.

    `download`: the revision of the source of an adapter that is downloaded while the engine runs. It is not a part of
    `folder`, because pods that an earlier version of the operator made have downloaded the adapter into `folder`.
    """

    name: str
    folder: str
    digest: str | None = None
    download: str | None = None

    @property
    def path(self) -> Path:
        """Return the folder, or the link to what was downloaded from the present source."""
        return Path(f"{self.folder}-{self.download}" if self.download else self.folder)


class WantedAdapters(ForeignModel):
    """The content of adapters.json. The adapters must have been trained on `base` and its commit."""

    base: str | None = None
    base_revision: str | None = None
    adapters: list[WantedAdapter] = Field([])


# Characters that a condition shows of an engine's message.
LONGEST_MESSAGE = 2000


def _shorten(value: object) -> object:
    return make_encodable(value[:LONGEST_MESSAGE]) if isinstance(value, str) else value


class AdapterError(ForeignModel):
    """Why an adapter is missing; `reason` is one of the catalogue's."""

    reason: Annotated[str, Field(max_length=100)]
    message: Annotated[str, BeforeValidator(_shorten)]
    remedy: Annotated[str, BeforeValidator(_shorten)]


class AdapterState(ForeignModel):
    """Whether the engine has the adapter with this digest, and has answered with it.

    `downloading`: its files are not there yet, and no attempt to download them has failed.
    """

    digest: Annotated[str | None, Field(max_length=100)] = None
    loaded: bool = False
    downloading: bool = False
    error: AdapterError | None = None


class AdapterSyncReport(ForeignModel):
    """The sidecar's answer on /adapters. `revision`: of the file that it read; `models`: what the engine lists.

    An answer without `models` and `adapters` comes from another program.
    """

    revision: str | None = None
    models: list[str]
    adapters: dict[str, AdapterState]


def make_revision(text: str) -> str:
    """Return the revision of this content of adapters.json."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
