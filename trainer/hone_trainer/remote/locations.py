"""Where a source with a `uri` is, and with which credentials and certificates it is read.

Input is spec.model or spec.dataset with the run's inputs; output is a `Location`, from which `fetch` opens a store. A
destination of spec.output.push is a location as well, see `push.destinations`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hone_api.layout import REGISTRY_SCHEME
from hone_api.reasons import (
    DATASET_INVALID,
    DATASET_NOT_FOUND,
    DESTINATION_MISSING,
    DESTINATION_OCCUPIED,
    INVALID_SPEC,
    MODEL_INVALID,
    MODEL_NOT_FOUND,
    Reason,
)
from hone_api.remote.sources import RemoteSource

from hone_trainer.inputs.manifest import JobInputs

Kind = Literal["model", "dataset", "push"]
_MISSING = {"model": MODEL_NOT_FOUND, "dataset": DATASET_NOT_FOUND, "push": DESTINATION_MISSING}
_INVALID = {"model": MODEL_INVALID, "dataset": DATASET_INVALID, "push": DESTINATION_OCCUPIED}
# What stands for the fields of a destination of `hone push`, which belongs to no spec.
_ON_A_LAPTOP = {
    "uri": "the destination",
    "oci": "the destination",
    "endpoint": "the variable AWS_ENDPOINT_URL_S3",
    "region": "the variable AWS_REGION",
    "secret": "the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in with `docker login`",
    "caBundle": "the file that the variable SSL_CERT_FILE names",
}


@dataclass(frozen=True)
class Location:
    """A URI and what access to it needs. `secret` is None where the environment's credentials are meant.

    `spec_field` is its field, where that is not spec.model or spec.dataset; a destination without one is of no spec.
    `missing` and `invalid` are the reasons for what is not there and for what can't be used.
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
        if self.kind == "push" and not self.spec_field:
            return f"The destination is {self.uri}"
        if self.kind == "push" and self.uri.startswith(REGISTRY_SCHEME):
            return f"{self.spec_field}.oci is {self.uri.removeprefix(REGISTRY_SCHEME)}"
        return f"{self.spec_field or f'spec.{self.kind}'}.uri is {self.uri}"

    @property
    def missing(self) -> Reason:
        return _MISSING[self.kind]

    @property
    def invalid(self) -> Reason:
        return _INVALID[self.kind]

    def name_field(self, name: str) -> str:
        """Return how remedies name a field of this location."""
        if self.kind == "push" and not self.spec_field:
            return _ON_A_LAPTOP[name]
        return f"{self.spec_field or f'spec.{self.kind}'}.{name}"


def locate(kind: Kind, source: RemoteSource, inputs: JobInputs, spec_field: str = "") -> Location:
    """Return the location of a model or dataset. Raises HoneError InvalidSpec for a missing ConfigMap."""
    bundle = source.ca_bundle.config_map if source.ca_bundle else None
    return Location(
        kind,
        str(source.uri),
        source.endpoint,
        source.region,
        inputs.read_secret_values(source.secret.name) if source.secret else None,
        inputs.find_config_map_file(bundle, f"spec.{kind}.caBundle.configMap", INVALID_SPEC) if bundle else None,
        spec_field,
    )
