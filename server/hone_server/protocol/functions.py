"""The fields of a request about the form of its answers, as in OpenAI: `response_format`, `tools`, `tool_choice`.

`protocol.requests` uses these types in its requests; `structured.grammars` makes grammars from them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from hone_server.protocol.messages import describe_json_type, drop_nulls

# No character of it needs an escape, neither in JSON nor in a grammar.
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
# As OpenAI has it.
MAX_TOOLS = 128


class Function(BaseModel):
    """A function that the model may call. Further keys go to the chat template as they are."""

    model_config = ConfigDict(extra="allow")

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """Return the JSON schema of the call's arguments; without parameters it is an empty object."""
        if not self.parameters:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return self.parameters | {"type": "object"}

    @model_validator(mode="after")
    def _check_parameters(self) -> "Function":
        """Refuse parameters that can't be an object, as arguments always are. Other types next to it are ignored."""
        kind = (self.parameters or {}).get("type")
        if kind is not None and kind != "object" and not (isinstance(kind, list) and "object" in kind):
            text = "the parameters of function {name} must be a schema of type 'object', and their type is {kind}"
            raise PydanticCustomError("parameters_type", text, {"name": repr(self.name), "kind": repr(kind)[:80]})
        return self


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: Function

    def format_for_template(self) -> dict[str, Any]:
        """Return the tool for a chat template, without `strict`, which means nothing to a model."""
        return self.model_dump(exclude_unset=True, exclude={"function": {"strict"}})


class ChosenName(BaseModel):
    name: str


class ChosenFunction(BaseModel):
    type: Literal["function"]
    function: ChosenName


ToolChoice = Literal["none", "auto", "required"] | ChosenFunction


def check_tool_choice(value: Any) -> Any:
    """Raise PydanticCustomError with one sentence instead of an error for each alternative."""
    match value:
        case None | "none" | "auto" | "required" | {"type": "function", "function": {"name": str()}}:
            return value
    raise PydanticCustomError(
        "tool_choice",
        "Input should be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': NAME}}",
    )


class _Format(BaseModel):
    """A part of a response format. What is null asks for nothing, and all else that is not known is refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return drop_nulls(value) if isinstance(value, dict) else value


class TextFormat(_Format):
    type: Literal["text"]


class JsonObjectFormat(_Format):
    type: Literal["json_object"]


class JsonSchema(_Format):
    name: str
    description: str | None = None
    form: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(_Format):
    type: Literal["json_schema"]
    json_schema: JsonSchema


def read_response_format(value: Any) -> Any:
    """Return the format as OpenAI writes it. Raises PydanticCustomError with one sentence.

    Clients of llama.cpp and of the Responses API write the schema next to the type.
    """
    if value is None or isinstance(value, _Format):
        return value
    if not isinstance(value, dict):
        example = "{'type': 'json_object'}"
        raise _make_refusal(f"must be an object, such as {example}; got {describe_json_type(value)}")
    given = drop_nulls(value)
    kind = given.pop("type", None)
    if kind not in ("text", "json_object", "json_schema"):
        found = repr(kind)[:80] if isinstance(kind, str) else describe_json_type(kind)
        raise _make_refusal(f"the type must be 'text', 'json_object' or 'json_schema'; got {found}")
    if kind != "json_schema" and "json_schema" in given:
        raise _make_refusal(f"json_schema is for the type 'json_schema', and the type is {kind!r}; change one of them")
    if kind != "text" and "schema" in given and "json_schema" not in given:
        if kind == "json_object" and given == {"schema": {}}:
            return {"type": kind}
        return {"type": "json_schema", "json_schema": {"name": "answer", **given}}
    return {"type": kind, **given}


def _make_refusal(message: str) -> PydanticCustomError:
    # The message must not be a template: braces in it are the client's.
    return PydanticCustomError("response_format", "{message}", {"message": message})


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat,
    Field(discriminator="type"),
    BeforeValidator(read_response_format),
]
