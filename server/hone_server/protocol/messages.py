"""Messages of a chat: what clients send, and what the chat template gets from them.

Clients repeat the history of a conversation with every request, and a part of it may come from another server: tool
calls without text, null for what is not set, parts instead of one text. OpenAI and vLLM accept these, so they are
accepted here. The template gets one text per message, and each tool call's arguments as an object, because templates
are written for that. Next in the flow: requests.py has the requests that contain the messages.
"""

import logging
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_core import PydanticCustomError

from hone_server.protocol.bodies import parse_json
from hone_server.protocol.bounds import MAX_VALUES
from hone_server.protocol.errors import ApiError

log = logging.getLogger("hone_server")

TEXT_PART_TYPES = frozenset({"text", "input_text", "output_text"})
# Their messages may have no text: a tool call, or a tool's empty result.
EMPTY_CONTENT_ROLES = frozenset({"assistant", "tool", "function"})


class TextPart(BaseModel):
    """A part of a message. The type `text` is that of chats, the others are those of the Responses API."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(BaseModel):
    """A refusal of another model, in the history."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class CalledFunction(BaseModel):
    """The function of a tool call; `arguments` is JSON text, as OpenAI has it, or already an object."""

    model_config = ConfigDict(extra="allow")

    name: str
    arguments: str | dict[str, Any] | None = None

    @field_validator("arguments", mode="wrap")
    @classmethod
    def _explain_arguments(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        return validate_explained(
            value, handler, lambda _: 'must be JSON text, such as \'{"city": "Paris"}\', or an object'
        )

    def format_for_template(self) -> dict[str, Any]:
        return drop_nulls(self.model_dump()) | {"arguments": self._read_arguments()}

    def _read_arguments(self) -> dict[str, Any]:
        """Return the arguments as an object. Anything else becomes an empty object, as in vLLM.

        A refusal would permanently end a conversation in which a model once wrote something else.
        """
        given = self.arguments
        if not given:
            return {}
        try:
            read = parse_json(given.encode(), MAX_VALUES) if isinstance(given, str) else given
        except (ValueError, ApiError):
            read = None
        if isinstance(read, dict):
            return read
        log.warning("a tool call in a request has arguments that are not a JSON object; the chat template gets {}")
        return {}


class ToolCall(BaseModel):
    """A call that the assistant made earlier."""

    model_config = ConfigDict(extra="allow")

    id: str | None = None
    type: Literal["function"] | None = "function"
    function: CalledFunction

    def format_for_template(self) -> dict[str, Any]:
        return drop_nulls(self.model_dump()) | {"type": "function", "function": self.function.format_for_template()}


class Message(BaseModel):
    """A message of a chat. Further keys, such as `name`, go to the chat template as they are, unless they are null."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[TextPart | RefusalPart] | None = Field(None, validate_default=True)
    tool_calls: list[ToolCall] | None = None
    # The name of tool calls until 2023; templates know only the new one.
    function_call: CalledFunction | None = None

    @field_validator("content", mode="wrap")
    @classmethod
    def _explain_content(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if value is None and "role" in info.data and info.data["role"] not in EMPTY_CONTENT_ROLES:
            raise PydanticCustomError(
                "content_missing",
                "a message of role {role} needs a text; only those of roles assistant, tool and function may have none",
                {"role": repr(info.data["role"])},
            )
        return validate_explained(value, handler, explain_content_error)

    def format_for_template(self) -> dict[str, Any]:
        """Return what the chat template gets: `content` is always a text, and there are no nulls."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        own = self.model_dump(exclude={"tool_calls", "function_call", "content"})
        message = drop_nulls(own) | {"content": content}
        calls = [call.format_for_template() for call in self.tool_calls or []]
        if not calls and self.function_call is not None:
            calls = [ToolCall(function=self.function_call).format_for_template()]
        # Templates check whether the key exists: an empty list would count as a message with calls.
        return message | ({"tool_calls": calls} if calls else {})


def drop_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without nulls, which typed clients write for what is not set."""
    return {name: value for name, value in values.items() if value is not None}


def validate_explained(value: Any, handler: ValidatorFunctionWrapHandler, explain: Any) -> Any:
    """Return the handler's value, or raise `explain(value)` instead of an error for each alternative of a union."""
    try:
        return handler(value)
    except ValidationError:
        # The message must not be a template: braces in it are the client's.
        raise PydanticCustomError("not_accepted", "{message}", {"message": explain(value)}) from None


def explain_content_error(value: Any) -> str:
    """Return why this is no content of a message."""
    if not isinstance(value, list):
        found = describe_json_type(value)
        return f"must be a text or a list of parts, such as {{'type': 'text', 'text': 'Hi'}}; got {found}"
    for place, part in enumerate(value):
        if not isinstance(part, dict):
            found = describe_json_type(part)
            return f"part {place} must be an object, such as {{'type': 'text', 'text': 'Hi'}}; got {found}"
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in TEXT_PART_TYPES | {"refusal"}:
            found = f"is of type {kind[:40]!r}" if isinstance(kind, str) else "has no type"
            return f"part {place} {found}, and the embedded engine reads only text; leave it out, or use engine vllm"
        key = "refusal" if kind == "refusal" else "text"
        if not isinstance(part.get(key), str):
            return (
                f"part {place} is of type {kind!r} and needs a text as {key!r}; got {describe_json_type(part.get(key))}"
            )
    return "must be a text or a list of parts"


def describe_json_type(value: Any) -> str:
    """Return JSON's name for a value of this kind."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
