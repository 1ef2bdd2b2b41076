"""What a request says about the form of its answers: `response_format`, `tools` and `tool_choice`, as OpenAI has them.

`protocol` takes these types into its requests; `structure` makes grammars of them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

# Nothing in it needs to be escaped, neither in JSON nor in a grammar.
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
        """The JSON schema of the call's arguments; no parameters at all are an empty object."""
        if not self.parameters:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object"} | self.parameters


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """Return what a chat template gets; `strict` says nothing to a model."""
        return self.model_dump(exclude_unset=True, exclude={"function": {"strict"}})


class ChosenName(BaseModel):
    name: str


class ChosenFunction(BaseModel):
    type: Literal["function"]
    function: ChosenName


ToolChoice = Literal["none", "auto", "required"] | ChosenFunction


def check_tool_choice(value: Any) -> Any:
    """Raise PydanticCustomError with one sentence in place of an error for each alternative."""
    match value:
        case None | "none" | "auto" | "required" | {"type": "function", "function": {"name": str()}}:
            return value
    raise PydanticCustomError(
        "tool_choice",
        "Input should be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': NAME}}",
    )


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["json_object"]


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    description: str | None = None
    form: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
