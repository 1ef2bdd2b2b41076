"""Build the structure of a request's answers: the tools for the chat template, and the grammar of the answer.

`protocol.functions` has the fields of the request, and `tool_formats` the ways to write calls. `guidance` compiles the
grammar, and `tool_calls` reads the answer. Pure; the syntax of the grammars is llguidance's.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hone_server.protocol.errors import ApiError
from hone_server.protocol.functions import ChosenFunction, JsonObjectFormat, JsonSchemaFormat, Tool
from hone_server.protocol.requests import ChatRequest, GenerationRequest
from hone_server.structured.schemas import SchemaError, prepare_schema
from hone_server.structured.tool_calls import CallsBegin
from hone_server.structured.tool_formats import GENERIC, TOOL_CALL_MARKERS, ToolCallFormat

# Calls in one answer, as a limit for a model that does not end its answer.
MAX_CALLS = 32
MAX_GRAMMAR_CHARACTERS = 128 * 1024
# Allowed between the tokens of JSON. Bounded, because small models may write spaces until the answer is cut.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
TEXT = r"(.|\n)*"

# Returns the special token of a tokenizer that has this text; None: there is none.
TokenLookup = Callable[[str], int | None]


@dataclass(frozen=True)
class AnswerStructure:
    """The structure of a request's answers. `grammar` is None if any text is allowed.

    schema_owners: for each part of the grammar, which schema it has, if there can be several. param: the field that the
    message about a refused grammar names. tools: for the chat template. tool_call_format: how calls are written; None:
    there are none. function_names: of the functions that may be called. calls_begin: where calls may begin.
    trigger_token: the token at which they begin, if `calls_begin` is TOKEN.
    """

    grammar: tuple[dict[str, Any], ...] | None = None
    schema_owners: tuple[str | None, ...] = ()
    param: str = "response_format"
    tools: list[dict[str, Any]] | None = None
    tool_call_format: ToolCallFormat | None = None
    function_names: set[str] = field(default_factory=set)
    calls_begin: CallsBegin = CallsBegin.ALWAYS
    trigger_token: int | None = None


ANY_TEXT = AnswerStructure()


def build_structure(
    request: GenerationRequest, tool_call_format: ToolCallFormat | None, find_token: TokenLookup, free_tokens: list[int]
) -> AnswerStructure:
    """Return the structure of the answers to a request, for a model that writes calls in this form.

    `free_tokens` are the added tokens that are allowed in free text, such as `<think>`. Raises ApiError.
    """
    tools = request.tools if isinstance(request, ChatRequest) else None
    if isinstance(request, ChatRequest):
        _check_tool_choice(request)
    if not isinstance(request, ChatRequest) or not tools or request.tool_choice == "none":
        schema = _make_answer_schema(request)
        return (
            ANY_TEXT
            if schema is None
            else AnswerStructure(_check_size([{"json_schema": schema}], "response_format"), (None,))
        )
    chosen = request.tool_choice or "auto"
    is_free = chosen == "auto"
    if tool_call_format is None and is_free:
        raise ApiError(
            400,
            "the chat template of this model has no form for tool calls that is known here; set tool_choice to "
            "'required' or to one function, start the server with --tool-call-parser (spec.toolCallParser) if the "
            "model was trained for one of its forms, or use engine vllm",
            param="tools",
        )
    callable_tools = tools
    if isinstance(chosen, ChosenFunction):
        callable_tools = [tool for tool in tools if tool.function.name == chosen.function.name]
    is_single = request.parallel_tool_calls is False or isinstance(chosen, ChosenFunction)
    answer = _make_answer_schema(request) if is_free else None
    begin, trigger = (
        _choose_calls_begin(tool_call_format, answer, find_token)
        if tool_call_format and is_free
        else (CallsBegin.ALWAYS, None)
    )
    grammars = _build_grammars(
        tool_call_format or GENERIC,
        callable_tools,
        find_token,
        max_calls=1 if is_single else MAX_CALLS,
        free=free_tokens if is_free else None,
        answer=answer,
    )
    owners = [f"the function {tool.function.name!r}" for tool in callable_tools]
    others = ["the schema of response_format" if part["name"] == "answer" else None for part in grammars]
    return AnswerStructure(
        grammar=_check_size(grammars, "tools"),
        schema_owners=(*others[: len(grammars) - len(owners)], *owners),
        param="tools",
        # A template without a known form for calls has, as far as we know, no place for tools either.
        tools=[tool.format_for_template() for tool in tools] if tool_call_format else None,
        tool_call_format=tool_call_format or GENERIC,
        function_names={tool.function.name for tool in callable_tools},
        calls_begin=begin,
        trigger_token=trigger,
    )


def _choose_calls_begin(
    form: ToolCallFormat, answer: dict[str, Any] | None, find_token: TokenLookup
) -> tuple[CallsBegin, int | None]:
    """Return where calls may begin in an answer that may also be text, or JSON by the schema `answer`."""
    if answer is not None or form.trigger is None:
        return CallsBegin.FIRST, None
    token = find_token(form.trigger)
    return (CallsBegin.MARK, None) if token is None else (CallsBegin.TOKEN, token)


def _check_tool_choice(request: ChatRequest) -> None:
    names = [tool.function.name for tool in request.tools or []]
    for name in (name for name in names if names.count(name) > 1):
        raise ApiError(400, f"two functions of tools are called {name!r}; rename one", param="tools")
    choice = request.tool_choice
    if choice == "required" and not names:
        raise ApiError(400, "tool_choice is 'required', and there are no tools; add some", param="tool_choice")
    if isinstance(choice, ChosenFunction) and choice.function.name not in names:
        found = ", ".join(names) or "none"
        message = f"tool_choice names the function {choice.function.name!r}, and the functions of tools are: {found}"
        raise ApiError(400, message, param="tool_choice")


def _make_answer_schema(request: GenerationRequest) -> dict[str, Any] | None:
    response_format = request.response_format
    if isinstance(response_format, JsonSchemaFormat):
        return _prepare_for_compiler(
            response_format.json_schema.form, "response_format", "response_format", is_strict=True
        )
    return _add_options({"type": "object"}) if isinstance(response_format, JsonObjectFormat) else None


def _make_arguments_schema(tool: Tool) -> dict[str, Any]:
    is_strict = bool(tool.function.strict)
    owner = f"tools: the function {tool.function.name!r}"
    schema = _prepare_for_compiler(tool.function.arguments_schema, "tools", owner, is_strict=is_strict)
    return {"type": "object"} | schema


def _prepare_for_compiler(schema: dict[str, Any], param: str, owner: str, *, is_strict: bool) -> dict[str, Any]:
    """Return the schema for the compiler. Raises ApiError."""
    try:
        prepared = prepare_schema(schema, is_strict=is_strict)
    except SchemaError as error:
        raise ApiError(400, f"{owner} has a schema that can't be enforced at {error}", param=param) from None
    return _add_options(prepared, is_lenient=not is_strict)


def _add_options(schema: Mapping[str, Any], *, is_lenient: bool = False) -> dict[str, Any]:
    options = {"whitespace_pattern": WHITESPACE} | ({"lenient": True} if is_lenient else {})
    return {**schema, "x-guidance": options}


def _check_size(grammars: list[dict[str, Any]], param: str) -> tuple[dict[str, Any], ...]:
    """Return the grammar. Raises ApiError if it is too long, or has a number that JSON does not allow."""
    try:
        length = len(json.dumps({"grammars": grammars}, allow_nan=False))
    except ValueError:
        raise ApiError(400, f"a schema of {param} has a number that is too large for a double", param=param) from None
    if length > MAX_GRAMMAR_CHARACTERS:
        message = f"the schemas of {param} have {length} characters, and the limit is {MAX_GRAMMAR_CHARACTERS}"
        raise ApiError(400, message, param=param)
    return tuple(grammars)


def _build_grammars(
    tool_call_format: ToolCallFormat,
    tools: list[Tool],
    find_token: TokenLookup,
    *,
    max_calls: int,
    free: list[int] | None,
    answer: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """Return the grammar of the answer, followed by that of each function's arguments.

    `free`: an answer may also be text with these tokens in it, or, if `answer` is its schema, JSON.
    """
    write_literal = partial(_write_literal, _find_marker_tokens(find_token))
    optional = tool_call_format.optional and find_token(tool_call_format.optional)
    more = f"({write_literal(tool_call_format.separator)} call){{0,{max_calls - 1}}}" if max_calls > 1 else ""
    more = f"{more} {write_literal(tool_call_format.after)}"
    lead = f"<[{optional}]>? " if optional else ""
    rules = [
        f"calls: {lead}{write_literal(tool_call_format.before)} call {more}",
        f"call: {write_literal(tool_call_format.opening)} function {write_literal(tool_call_format.closing)}",
        "function: " + " | ".join(f"function_{number}" for number in range(len(tools))),
    ]
    for number, tool in enumerate(tools):
        rules.append(
            f"function_{number}: {json.dumps(tool.function.name + tool_call_format.middle)} @arguments_{number}"
        )
    if free is None:
        rules.append("start: calls")
    else:
        rules += _write_optional_calls(tool_call_format, find_token, more, free, has_answer_schema=answer is not None)
    rules.append(f"TEXT: /{TEXT}/")
    grammars: list[dict[str, Any]] = [{"name": "start", "lark_grammar": "\n".join(rules)}]
    if free is not None and answer is not None:
        grammars.append({"name": "answer", "json_schema": answer})
    for number, tool in enumerate(tools):
        grammars.append({"name": f"arguments_{number}", "json_schema": _make_arguments_schema(tool)})
    return grammars


def _write_optional_calls(
    tool_call_format: ToolCallFormat, find_token: TokenLookup, more: str, free: list[int], *, has_answer_schema: bool
) -> list[str]:
    """Return the rules of an answer that is text, or JSON if it has a schema, or calls.

    more: the rest of a list of calls. Raises ApiError if JSON and calls begin alike.
    """
    if tool_call_format.trigger is None:
        if has_answer_schema:
            message = (
                "this model writes tool calls as JSON, so that its tool calls and its answers to response_format look "
                "the same; leave out response_format or tools, or set tool_choice to 'required' or 'none'"
            )
            raise ApiError(400, message, param="response_format")
        return [f"start: NO_CALL {_write_more_text(free)} | calls", rf"NO_CALL: /(\s*[^\s{{]{TEXT})?/"]
    if has_answer_schema:
        return ["start: @answer | calls"]
    if find_token(tool_call_format.trigger) is not None:
        return [f"start: TEXT {_write_more_text(free)} calls?"]
    write_literal = partial(_write_literal, _find_marker_tokens(find_token))
    opening = (tool_call_format.before + tool_call_format.opening).removeprefix(tool_call_format.trigger)
    first_call = f"lead {write_literal(opening)} function {write_literal(tool_call_format.closing)}"
    return [
        f"start: {_write_text_before(free)} (TEXT | {first_call} {more})",
        f"lead[lazy]: TEXT {json.dumps(tool_call_format.trigger)}",
    ]


def _write_literal(marks: list[tuple[str, int]], text: str) -> str:
    """Return the text as a rule; marks that are one token in the vocabulary must be named as tokens."""
    parts = [text]
    for mark, token in marks:
        parts = [piece for part in parts for piece in _split_at_marker(part, mark, f"<[{token}]>")]
    return " ".join(part if part.startswith("<[") else json.dumps(part) for part in parts if part)


def _write_more_text(free: list[int]) -> str:
    return f"(<[{','.join(map(str, free))}]> TEXT)*" if free else ""


def _write_text_before(free: list[int]) -> str:
    return f"(TEXT <[{','.join(map(str, free))}]>)*" if free else ""


def _find_marker_tokens(find_token: TokenLookup) -> list[tuple[str, int]]:
    return [(mark, token) for mark in TOOL_CALL_MARKERS if (token := find_token(mark)) is not None]


def _split_at_marker(text: str, mark: str, token: str) -> list[str]:
    """Return the parts of the text, with `token` in place of `mark`."""
    if text.startswith("<["):
        return [text]
    first, *others = text.split(mark)
    return [first, *(part for other in others for part in (token, other))]
