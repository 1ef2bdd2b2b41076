"""Build the structure of a request's answers: the tools for the chat template, and the grammar of the answer.

`protocol.functions` has the fields of the request, and `tool_formats` the ways to write calls. `guidance` compiles the
grammar, and `tool_calls` reads the answer. Pure; the syntax of the grammars is llguidance's.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hone_server.protocol.errors import ApiError
from hone_server.protocol.functions import ChosenFunction, JsonObjectFormat, JsonSchemaFormat, Tool
from hone_server.protocol.requests import ChatRequest, GenerationRequest
from hone_server.structured.schemas import SchemaError, prepare
from hone_server.structured.tool_calls import CallsBegin
from hone_server.structured.tool_formats import GENERIC, MARKS, ToolFormat

# Calls in one answer, as a limit for a model that does not end its answer.
MAX_CALLS = 32
MAX_GRAMMAR_CHARACTERS = 128 * 1024
# Allowed between the tokens of JSON. Bounded, because small models may write spaces until the answer is cut.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
TEXT = r"(.|\n)*"

# Returns the special token of a tokenizer that has this text; None: there is none.
TokenOf = Callable[[str], int | None]


@dataclass(frozen=True)
class Structure:
    """The structure of a request's answers. `grammar` is None if any text is allowed.

    owners: for each part of the grammar, which schema it has, if there can be several.
    param: the field that the message about a refused grammar names. tools: for the chat template. form: how calls are
    written; None: there are none. names: of the functions that may be called. begin: where calls may begin. trigger:
    the token at which they begin, if `begin` is TOKEN.
    """

    grammar: tuple[dict[str, Any], ...] | None = None
    owners: tuple[str | None, ...] = ()
    param: str = "response_format"
    tools: list[dict[str, Any]] | None = None
    form: ToolFormat | None = None
    names: set[str] = field(default_factory=set)
    begin: CallsBegin = CallsBegin.ALWAYS
    trigger: int | None = None


FREE = Structure()


def structure_of(
    request: GenerationRequest, form: ToolFormat | None, token_of: TokenOf, free_tokens: list[int]
) -> Structure:
    """Return the structure of the answers to a request, for a model that writes calls in this form.

    `free_tokens` are the added tokens that are allowed in free text, such as `<think>`. Raises ApiError.
    """
    tools = request.tools if isinstance(request, ChatRequest) else None
    if isinstance(request, ChatRequest):
        _check_choice(request)
    if not isinstance(request, ChatRequest) or not tools or request.tool_choice == "none":
        schema = _answer_schema(request)
        return FREE if schema is None else Structure(_sized([{"json_schema": schema}], "response_format"), (None,))
    chosen = request.tool_choice or "auto"
    is_free = chosen == "auto"
    if form is None and is_free:
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
    answer = _answer_schema(request) if is_free else None
    begin, trigger = _begin_of(form, answer, token_of) if form and is_free else (CallsBegin.ALWAYS, None)
    grammars = _grammars(
        form or GENERIC,
        callable_tools,
        token_of,
        most=1 if is_single else MAX_CALLS,
        free=free_tokens if is_free else None,
        answer=answer,
    )
    owners = [f"the function {tool.function.name!r}" for tool in callable_tools]
    others = ["the schema of response_format" if part["name"] == "answer" else None for part in grammars]
    return Structure(
        grammar=_sized(grammars, "tools"),
        owners=(*others[: len(grammars) - len(owners)], *owners),
        param="tools",
        # A template without a known form for calls has, as far as we know, no place for tools either.
        tools=[tool.for_template() for tool in tools] if form else None,
        form=form or GENERIC,
        names={tool.function.name for tool in callable_tools},
        begin=begin,
        trigger=trigger,
    )


def _begin_of(form: ToolFormat, answer: dict[str, Any] | None, token_of: TokenOf) -> tuple[CallsBegin, int | None]:
    """Return where calls may begin in an answer that may also be text, or JSON by the schema `answer`."""
    if answer is not None or form.trigger is None:
        return CallsBegin.FIRST, None
    token = token_of(form.trigger)
    return (CallsBegin.MARK, None) if token is None else (CallsBegin.TOKEN, token)


def _check_choice(request: ChatRequest) -> None:
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


def _answer_schema(request: GenerationRequest) -> dict[str, Any] | None:
    wanted = request.response_format
    if isinstance(wanted, JsonSchemaFormat):
        return _for_compiler(wanted.json_schema.form, "response_format", "response_format", is_strict=True)
    return _with_options({"type": "object"}) if isinstance(wanted, JsonObjectFormat) else None


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    is_strict = bool(tool.function.strict)
    owner = f"tools: the function {tool.function.name!r}"
    schema = _for_compiler(tool.function.arguments_schema, "tools", owner, is_strict=is_strict)
    return {"type": "object"} | schema


def _for_compiler(schema: dict[str, Any], param: str, owner: str, *, is_strict: bool) -> dict[str, Any]:
    """Return the schema for the compiler. Raises ApiError."""
    try:
        prepared = prepare(schema, is_strict=is_strict)
    except SchemaError as error:
        raise ApiError(400, f"{owner} has a schema that can't be enforced at {error}", param=param) from None
    return _with_options(prepared, is_lenient=not is_strict)


def _with_options(schema: Mapping[str, Any], *, is_lenient: bool = False) -> dict[str, Any]:
    options = {"whitespace_pattern": WHITESPACE} | ({"lenient": True} if is_lenient else {})
    return {**schema, "x-guidance": options}


def _sized(grammars: list[dict[str, Any]], param: str) -> tuple[dict[str, Any], ...]:
    """Return the grammar. Raises ApiError if it is too long, or has a number that JSON does not allow."""
    try:
        length = len(json.dumps({"grammars": grammars}, allow_nan=False))
    except ValueError:
        raise ApiError(400, f"a schema of {param} has a number that is too large for a double", param=param) from None
    if length > MAX_GRAMMAR_CHARACTERS:
        message = f"the schemas of {param} have {length} characters, and the limit is {MAX_GRAMMAR_CHARACTERS}"
        raise ApiError(400, message, param=param)
    return tuple(grammars)


def _grammars(
    form: ToolFormat,
    tools: list[Tool],
    token_of: TokenOf,
    *,
    most: int,
    free: list[int] | None,
    answer: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """Return the grammar of the answer, followed by that of each function's arguments.

    `free`: an answer may also be text with these tokens in it, or, if `answer` is its schema, JSON.
    """
    marks = _marks(token_of)

    def literal(text: str) -> str:
        """Return the text as a rule; marks that are one token in the vocabulary must be named as tokens."""
        parts = [text]
        for mark, token in marks:
            parts = [piece for part in parts for piece in _split(part, mark, f"<[{token}]>")]
        return " ".join(part if part.startswith("<[") else json.dumps(part) for part in parts if part)

    optional = form.optional and token_of(form.optional)
    more = f"({literal(form.separator)} call){{0,{most - 1}}}" if most > 1 else ""
    more = f"{more} {literal(form.after)}"
    lead = f"<[{optional}]>? " if optional else ""
    rules = [
        f"calls: {lead}{literal(form.before)} call {more}",
        f"call: {literal(form.opening)} function {literal(form.closing)}",
        "function: " + " | ".join(f"function_{number}" for number in range(len(tools))),
    ]
    for number, tool in enumerate(tools):
        rules.append(f"function_{number}: {json.dumps(tool.function.name + form.middle)} @arguments_{number}")
    if free is None:
        rules.append("start: calls")
    elif answer is not None and form.trigger is None:
        message = (
            "this model writes tool calls as JSON, so that response_format and tools can't be told apart in its "
            "answers; leave one of them out, or set tool_choice to 'required' or 'none'"
        )
        raise ApiError(400, message, param="response_format")
    elif answer is not None:
        rules.append("start: @answer | calls")
    elif form.trigger is None:
        rules += [f"start: NO_CALL {_more_text(free)} | calls", rf"NO_CALL: /(\s*[^\s{{]{TEXT})?/"]
    elif token_of(form.trigger) is not None:
        rules.append(f"start: TEXT {_more_text(free)} calls?")
    else:
        opening = (form.before + form.opening).removeprefix(form.trigger)
        rules += [
            f"start: {_text_before(free)} (TEXT | lead {literal(opening)} function {literal(form.closing)} {more})",
            f"lead[lazy]: TEXT {json.dumps(form.trigger)}",
        ]
    rules.append(f"TEXT: /{TEXT}/")
    grammars: list[dict[str, Any]] = [{"name": "start", "lark_grammar": "\n".join(rules)}]
    if free is not None and answer is not None:
        grammars.append({"name": "answer", "json_schema": answer})
    for number, tool in enumerate(tools):
        grammars.append({"name": f"arguments_{number}", "json_schema": _arguments_schema(tool)})
    return grammars


def _more_text(free: list[int]) -> str:
    return f"(<[{','.join(map(str, free))}]> TEXT)*" if free else ""


def _text_before(free: list[int]) -> str:
    return f"(TEXT <[{','.join(map(str, free))}]>)*" if free else ""


def _marks(token_of: TokenOf) -> list[tuple[str, int]]:
    return [(mark, token) for mark in MARKS if (token := token_of(mark)) is not None]


def _split(text: str, mark: str, token: str) -> list[str]:
    """Return the parts of the text, with `token` in place of `mark`."""
    if text.startswith("<["):
        return [text]
    first, *others = text.split(mark)
    return [first, *(part for other in others for part in (token, other))]
