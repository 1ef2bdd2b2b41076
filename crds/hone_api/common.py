"""Parts that both kinds share: claims, resources, pod options, conditions."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

GROUP = "hone.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class ApiModel(BaseModel):
    """A part of the contract: camelCase on the wire, snake_case in Python, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, data: Any) -> Any:
        if not isinstance(data, dict) or None not in data.values():
            return data
        return {key: value for key, value in data.items() if value is not None}

    def to_wire(self) -> dict[str, Any]:
        """Return JSON-ready data with the wire's names, without the fields that were left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ForeignModel(ApiModel):
    """What another program wrote, which may be newer: fields that this version does not know are ignored."""

    model_config = ConfigDict(extra="ignore")


def make_rule(expression: str, message: str, *, field_path: str | None = None) -> dict[str, str]:
    """Return a CEL rule between fields: if it is false, the API server and `hone validate` refuse with `message`."""
    found = {"rule": expression, "message": message}
    return found | {"fieldPath": field_path} if field_path else found


def declare_rules(*of: dict[str, str]) -> dict[str, Any]:
    """Return the `json_schema_extra` that adds CEL rules to a model."""
    return {"x-kubernetes-validations": list(of)}


def declare_list_key(field: str) -> dict[str, Any]:
    """Return the `json_schema_extra` of a list whose items differ in one field."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [field]}


# In the `json_schema_extra` of a list: the field next to it that has the same fields as the items. Its descriptions are
# not repeated in the CRD, whose size is limited.
DESCRIBED_AT = "x-described-at"


def require_exactly_one(*fields: str) -> str:
    """Return the CEL expression that is true when exactly one of the fields is set."""
    return f"[{', '.join(f'has(self.{name})' for name in fields)}].filter(x, x).size() == 1"


def make_text_field(pattern: str, message: str, *, max_length: int = 253) -> Any:
    """Return the Field of a string that must match an RE2 pattern; `message` explains to the user what it must be."""
    return Field(max_length=max_length, pattern=pattern, json_schema_extra={"x-message": message})


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _stays_below(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError(_STAYS_BELOW)
    return path


_STAYS_BELOW = "must stay on the claim: remove the '..'"

DNS_LABEL_NAME = make_rule(
    "self.metadata.name.matches(r'^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 52",
    "must be a DNS label of at most 52 characters, beginning with a letter, such as my-job: "
    "what Hone makes for the object is named after it",
    field_path=".metadata.name",
)

ObjectName = Annotated[
    str,
    make_text_field(
        r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        "must be the name of a Kubernetes object: lower-case letters, digits, '-' and '.', such as my-name",
    ),
]
HubName = Annotated[
    str,
    make_text_field(
        r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$",
        "must be a name on the hub such as owner/name, neither a URL nor a path",
        max_length=193,
    ),
]
Revision = Annotated[
    str, make_text_field(r"^[A-Za-z0-9_./-]+$", "must be a branch, tag or commit, such as main or v1.0", max_length=255)
]
RelativePath = Annotated[
    str,
    Field(
        max_length=512,
        pattern=r"^[^/]",
        json_schema_extra={
            "x-message": "must be a path relative to the claim's root, such as models/llama: no leading '/'",
            **declare_rules(make_rule(r"!self.matches(r'(^|/)\.\.(/|$)')", _STAYS_BELOW)),
        },
    ),
    AfterValidator(_stays_below),
]
Quantity = Annotated[
    str,
    Field(
        max_length=32,
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "x-message": "must be a quantity such as 8, 500m or 64Gi",
        },
    ),
    BeforeValidator(_as_text),
]
ResourceName = Annotated[
    str,
    make_text_field(
        r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        "must be the resource of a device plugin, such as amd.com/gpu",
        max_length=317,
    ),
]
DataKey = Annotated[
    str, make_text_field(r"^[-._a-zA-Z0-9]+$", "must be a key: letters, digits, '-', '_' and '.', such as train.jsonl")
]
RemoteUri = Annotated[
    str,
    make_text_field(
        r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#\s]*)?|https://[^/?#@\s]+/[^?#\s]+|"
        r"oci://[A-Za-z0-9.-]+(:[0-9]+)?/[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|"
        r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?@sha256:[0-9a-f]{64}))$",
        "must be s3://BUCKET/KEY, https://HOST/PATH or oci://REGISTRY/REPOSITORY:TAG (or @sha256:DIGEST), without "
        "user, password, query and fragment: credentials belong in a Secret, which secret names",
        max_length=1024,
    ),
]
Label = Annotated[
    str,
    make_text_field(
        r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
        "must be a label's value: letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        max_length=63,
    ),
]


class ClaimReference(ApiModel):
    """A PersistentVolumeClaim in the object's own namespace."""

    name: ObjectName = Field(description="Name of the PersistentVolumeClaim.", examples=["models"])


class CacheOptions(ApiModel):
    """Where downloads from the hub are kept."""

    claim: ClaimReference = Field(
        description="A claim that several jobs and services may share.", examples=[{"name": "hub-cache"}]
    )


class ClaimPath(ClaimReference):
    """A file or folder on a PersistentVolumeClaim."""

    path: RelativePath | None = Field(
        None, description="Path on the claim, relative to its root; left out: the root.", examples=["llama-2-7b"]
    )


class SecretKey(ApiModel):
    """One key of a Secret in the object's own namespace."""

    name: ObjectName = Field(description="Name of the Secret.", examples=["hf-token"])
    key: DataKey = Field("token", description="Key in the Secret whose value is meant.", examples=["token"])


class LocalSecretReference(ApiModel):
    """A Secret in the object's own namespace."""

    name: ObjectName = Field(description="Name of the Secret.", examples=["registry"])


class Condition(ApiModel):
    """A condition as the Kubernetes API conventions have it."""

    type: Annotated[str, Field(max_length=316)] = Field(description="What the condition speaks of.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[str, Field(min_length=1, max_length=1024)] = Field(description="Why, in UpperCamelCase.")
    message: Annotated[str, Field(max_length=32768)] = Field(description="Why, in a sentence, and what to do.")
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] = Field(
        description="When `status` last changed (RFC 3339)."
    )
    observed_generation: int | None = Field(None, description="The metadata.generation that this speaks of.")


# Columns of `kubectl get` that both kinds have.
READY_COLUMNS = [
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
]
# A column of `kubectl get --output wide` that both kinds have, as the last one: it is long.
MESSAGE_COLUMN = {
    "name": "Message",
    "type": "string",
    "jsonPath": '.status.conditions[?(@.type=="Ready")].message',
    "priority": 1,
}

Conditions = Annotated[list[Condition], Field(max_length=16, json_schema_extra=declare_list_key("type"))]
