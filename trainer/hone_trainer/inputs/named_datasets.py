"""The datasets of a job, each with the field and the label by which messages name it.

In: the spec. Out: a `NamedDataset` for spec.dataset, or for each entry of spec.datasets. All modules write messages
about spec.dataset; `NamedDataset` makes those about an entry of spec.datasets name it. Next: `data.dataset`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hone_api.finetunejobs.sources import DatasetSource
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.reasons import HoneError

_FIELD = re.compile(r"\bspec\.dataset\b")


@dataclass(frozen=True)
class NamedDataset:
    """A dataset, its position (from 0) and its field, such as spec.datasets[1].

    `label` names it among several, such as "dataset 2 (owner/name)"; it is empty for the only one.
    """

    source: DatasetSource
    position: int = 0
    field: str = "spec.dataset"
    label: str = ""

    @property
    def place_prefix(self) -> str:
        """The beginning of the places of its rows."""
        return f"{self.label}, " if self.label else ""

    def name_field(self, text: str) -> str:
        """Return a message about spec.dataset as one about this dataset's field."""
        return _FIELD.sub(self.field, text)

    def name_dataset(self, text: str) -> str:
        """Return a message about spec.dataset or its rows as one from which it is clear which dataset is meant."""
        named = self.name_field(text)
        return named if self.label in named or self.field in named else f"{self.label}: {named}"

    def name_all(self, texts: list[str]) -> list[str]:
        """Return `name_dataset` of each message."""
        return [self.name_dataset(text) for text in texts]

    @contextmanager
    def name_failures(self) -> Iterator[None]:
        """Within the context, make failures name this dataset."""
        try:
            yield
        except HoneError as error:
            if type(error) is not HoneError:
                raise
            remedy = self.name_field(error.remedy)
            raise HoneError(error.reason, self.name_dataset(error.message), remedy=remedy) from error


def list_datasets(spec: FineTuneJobSpec) -> list[NamedDataset]:
    """Return the datasets of a job in the order in which their rows come."""
    if spec.dataset:
        return [NamedDataset(spec.dataset)]
    entries = spec.datasets or []
    return [
        NamedDataset(
            entry,
            position,
            f"spec.datasets[{position}]",
            f"dataset {position + 1} ({describe_source(entry)})" if len(entries) > 1 else "",
        )
        for position, entry in enumerate(entries)
    ]


def describe_source(source: DatasetSource) -> str:
    """Return where a dataset comes from, in a few words."""
    if source.config_map:
        return f"{source.config_map.name}/{source.config_map.key}"
    if source.claim:
        return f"{source.claim.name}/{source.claim.path}" if source.claim.path else source.claim.name
    return source.name or source.uri or "no source"
