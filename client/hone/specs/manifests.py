"""Write the manifests of the client's objects, and check them as the API server does. Pure.

The fields come as keyword arguments: every field of the spec works, in snake_case or camelCase, because the models of
hone_api read them. Only what the caller gave is written.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from hone_api.common import API_VERSION, ApiModel
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.io.terminal import hide_url_credentials
from pydantic import ValidationError

from hone.errors import InvalidSpecError
from hone.objects.names import JOB, SERVICE, Kind
from hone.objects.views import Object
from hone.specs.library_configs import convert_lora_config, convert_sft_config
from hone.specs.sources import DatasetSource, ModelSource, Source, describe_dataset, describe_model

# Of the name of an object that is named after its model.
LONGEST_STEM = 40
CORRECT = "Correct what the message names."


@dataclass(frozen=True)
class Draft:
    """An object to be made, with the ConfigMap that it reads and the folders here that stand for its claims."""

    body: Object
    config_map: Object | None = None
    claims: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])


def draft_job(
    name: str | None, model: ModelSource, dataset: DatasetSource | None, fields: Mapping[str, Any], *, is_local: bool
) -> Draft:
    """Return a FineTuneJob. `fields`: those of its spec; lora and training may be configs of PEFT and TRL.

    Raises InvalidSpecError.
    """
    chosen = name or make_name(model)
    given = {key: value for key, value in fields.items() if value is not None}
    base = describe_model(model, is_local=is_local)
    rows = Source({}) if dataset is None else describe_dataset(dataset, chosen, is_local=is_local)
    given |= {"model": base.fields} | ({} if dataset is None else {"dataset": rows.fields})
    if is_dataclass(given.get("lora")) and not isinstance(given["lora"], type):
        given["lora"] = convert_lora_config(given["lora"])
    if is_dataclass(given.get("training")) and not isinstance(given["training"], type):
        given["training"], checkpoint = convert_sft_config(given["training"])
        if checkpoint and "checkpoint" in given:
            raise InvalidSpecError(
                f"checkpoint is given, and training sets {' and '.join(checkpoint)} of it, too", "Give one of them."
            )
        given |= {"checkpoint": checkpoint} if checkpoint else {}
    body = _make_body(JOB, chosen, FineTuneJobSpec, given)
    return Draft(body, _make_config_map(rows), {**base.claims, **rows.claims})


def draft_service(name: str | None, model: ModelSource, fields: Mapping[str, Any], *, is_local: bool) -> Draft:
    """Return an InferenceService. Raises InvalidSpecError."""
    given = {key: value for key, value in fields.items() if value is not None}
    served = describe_model(model, is_local=is_local)
    body = _make_body(SERVICE, name or make_name(model), InferenceServiceSpec, given | {"model": served.fields})
    return Draft(body, None, served.claims)


def make_name(model: ModelSource) -> str:
    """Return a new name for an object, after its model."""
    text = model if isinstance(model, str) else getattr(model, "name", None)
    last = str(text or "model").rstrip("/").rpartition("/")[2].lower()
    stem = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:LONGEST_STEM].strip("-")
    return f"{stem if stem[:1].isalpha() else f'model-{stem}'.rstrip('-')}-{secrets.token_hex(3)}"


def check_body(body: Object) -> None:
    """Raise InvalidSpecError with what `kubectl apply` would refuse."""
    from hone_api.schema.validation import validate_object

    if sentences := validate_object(body):
        raise InvalidSpecError("; ".join(sentences), CORRECT)


def _make_body(kind: Kind, name: str, model: type[ApiModel], fields: Mapping[str, Any]) -> Object:
    try:
        spec = model.model_validate(fields).model_dump(
            mode="json", by_alias=True, exclude_unset=True, exclude_none=True
        )
    except ValidationError as error:
        raise InvalidSpecError("; ".join(_describe_errors(error, model)), CORRECT) from None
    body = {"apiVersion": API_VERSION, "kind": kind.name, "metadata": {"name": name}, "spec": spec}
    check_body(body)
    return body


def _describe_errors(error: ValidationError, model: type[ApiModel]) -> list[str]:
    found: dict[str, str] = {}
    for each in error.errors(include_url=False):
        path = ".".join(["spec", *map(str, each["loc"])])
        if each["type"] == "extra_forbidden":
            found.setdefault(path, f'unknown field "{path}"')
        elif each["type"] == "missing":
            found.setdefault(path, f"{path}: Required value")
        else:
            pattern = each.get("ctx", {}).get("pattern")
            sentence = _find_sentence(model.model_json_schema(), pattern) if pattern else None
            message = sentence or str(each["msg"]).removeprefix("Value error, ")
            shown = hide_url_credentials(repr(each["input"]))  # before it is cut: a cut URL is none
            found.setdefault(path, f"{path} is {shown:.60}: {message}")
    return list(found.values())


def _find_sentence(node: Any, pattern: str) -> str | None:
    """Return the sentences of a schema for texts that must match a pattern."""
    if isinstance(node, dict):
        if node.get("pattern") == pattern and isinstance(node.get("x-message"), str):
            return str(node["x-message"])
        node = list(node.values())
    found = (_find_sentence(each, pattern) for each in node) if isinstance(node, list) else ()
    return next((each for each in found if each), None)


def _make_config_map(source: Source) -> Object | None:
    if source.rows is None or not isinstance(source.fields, Mapping):
        return None
    about = source.fields["configMap"]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": about["name"]},
        "data": {about["key"]: source.rows},
    }
