"""The messages about downloads of adapters: what the operator requests, and which downloads have failed.

The operator writes RequestedDownloads into the ConfigMap of the desired adapters. hone_trainer.models.adapter_downloads
reads them next to a running engine, leaves links, and writes DownloadFailures for hone_server.adapter_sidecar.
"""

from pathlib import Path

from pydantic import Field

from hone_api.common import ForeignModel
from hone_api.inferenceservices.adapter_sync import AdapterError
from hone_api.inferenceservices.spec import ArtifactUri


class RequestedDownload(ForeignModel):
    """A model or adapter at a URI. `field`: of the spec. `link`: becomes a link to its folder in the cache."""

    field: str
    link: Path
    source: ArtifactUri


class RequestedDownloads(ForeignModel):
    """The content of downloads.json."""

    downloads: list[RequestedDownload] = Field([])


class DownloadFailures(ForeignModel):
    """Why adapters are not downloaded, by the path of their links. They are tried again."""

    failures: dict[Path, AdapterError] = Field({})
