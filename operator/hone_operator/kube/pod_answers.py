"""Parse the answer of a pod: only the fields of its model are kept, each with a limit.

In: the bytes that pod_poller.py has read. Out: JSON, or None for an answer of another shape. The plans report a pod
without an answer.
"""

from typing import Annotated, Any

from hone_api.artifacts.trainer_reports import ProgressReport
from hone_api.common import ForeignModel
from hone_api.inferenceservices.adapter_sync import AdapterSyncReport
from pydantic import Field, ValidationError

from hone_operator.objects.resources import FINETUNEJOBS, Key

LONGEST_NAME = 1024
MOST_MODELS = 1000

_Name = Annotated[str, Field(max_length=LONGEST_NAME)]


class _ListedModel(ForeignModel):
    """One entry of an engine's /v1/models."""

    id: _Name
    root: _Name | None = None
    digest: _Name | None = None


class _ModelList(ForeignModel):
    """The body of an engine's /v1/models."""

    data: Annotated[list[_ListedModel], Field(max_length=MOST_MODELS)]


def read_answer(key: Key, data: bytes) -> Any:
    """Return the JSON that the object's plan reads; None where the bytes are not an answer of this kind of pod."""
    models = (ProgressReport,) if key.resource == FINETUNEJOBS else (AdapterSyncReport, _ModelList)
    for model in models:
        try:
            return model.model_validate_json(data).model_dump(mode="json", by_alias=True, exclude_none=True)
        except (ValidationError, ValueError):
            continue
    return None
