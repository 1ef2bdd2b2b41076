"""Parse an owner as its model.

In: an object as the API server has it. Out: the model, or the first field that breaks the contract. Next:
snapshots/reader.py.
"""

from typing import TypeVar

from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.inferenceservices.spec import InferenceService
from hone_api.io.terminal import hide_url_credentials
from hone_api.reasons import INVALID_SPEC, HoneError
from pydantic import ValidationError

from hone_operator.objects.bounded_json import is_deeper
from hone_operator.objects.resources import Object
from hone_operator.objects.sizes import describe_oversize

MAX_SPEC_DEPTH = 50

Parsed = TypeVar("Parsed", FineTuneJob, InferenceService)


def parse_object(model: type[Parsed], owner: Object) -> Parsed | HoneError:
    """Return the object as its model, or an error that names the field and its value."""
    if oversize := describe_oversize(owner):
        return HoneError(INVALID_SPEC, oversize, remedy="Make it smaller.")
    if is_deeper(owner.get("spec"), MAX_SPEC_DEPTH):
        return HoneError(
            INVALID_SPEC, f"spec: lists and maps are nested in each other more than {MAX_SPEC_DEPTH} times"
        )
    try:
        return model.model_validate({name: value for name, value in owner.items() if name != "status"})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part)[:100] for part in first["loc"])
        shown = hide_url_credentials(str(first["input"]))[:200]  # before it is cut: a cut URL is none
        return HoneError(INVALID_SPEC, f"{field}: {first['msg']} (found {shown!r})")
