"""Where a source with a `uri` is, and with which credentials and certificates it is read.

Input is spec.model or spec.dataset with the run's inputs; output is a `Location`, from which `fetch` opens a store.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hone_api.reasons import DATASET_INVALID, DATASET_NOT_FOUND, INVALID_SPEC, MODEL_INVALID, MODEL_NOT_FOUND, Reason
from hone_api.remote_sources import RemoteSource

from hone_trainer.inputs.manifest import JobInputs

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Location:
    """A URI and what reading it needs. `secret` is None where the environment's credentials are meant.

    `spec_field` is its field, where that is not spec.model or spec.dataset. `missing` and `invalid` are the reasons for
    what is not there and for what can't be used.
    """

    kind: Kind
    uri: str
    endpoint: str | None = None
    region: str | None = None
    secret: dict[str, str] | None = field(default=None, repr=False)
    ca_file: Path | None = None
    spec_field: str = ""

    @property
    def where(self) -> str:
        """The beginning of messages."""
        return f"{self.spec_field or f'spec.{self.kind}'}.uri is {self.uri}"

    @property
    def missing(self) -> Reason:
        return MODEL_NOT_FOUND if self.kind == "model" else DATASET_NOT_FOUND

    @property
    def invalid(self) -> Reason:
        return MODEL_INVALID if self.kind == "model" else DATASET_INVALID


def locate(kind: Kind, source: RemoteSource, inputs: JobInputs, spec_field: str = "") -> Location:
    """Return the location of a model or dataset. Raises HoneError InvalidSpec for a missing ConfigMap."""
    bundle = source.ca_bundle.config_map if source.ca_bundle else None
    return Location(
        kind,
        str(source.uri),
        source.endpoint,
        source.region,
        inputs.secret_values(source.secret.name) if source.secret else None,
        inputs.config_map_file(bundle, f"spec.{kind}.caBundle.configMap", INVALID_SPEC) if bundle else None,
        spec_field,
    )
