"""Add the structure that a request asks for to its answers: the grammar before, and the tool calls after generation."""

from dataclasses import replace
from typing import Any

from hone_server.generation.generate import GenerationTask, ServedModel, make_chat_tasks, make_completion_tasks
from hone_server.http.formatting import ChatFormatter, ToolCallFormatter
from hone_server.protocol.errors import ApiError
from hone_server.protocol.requests import ChatRequest, CompletionRequest, GenerationRequest
from hone_server.structured.grammars import AnswerStructure, build_structure
from hone_server.structured.tool_formats import TOOL_CALL_MARKERS


def read_structure(model: ServedModel, request: GenerationRequest) -> AnswerStructure:
    """Return the structure of the answers. Raises ApiError."""
    if request.response_format is None and not getattr(request, "tools", None):
        return build_structure(request, None, lambda _: None, [])
    added: dict[int, Any] = model.tokenizer.added_tokens_decoder
    tokens = {token.content: number for number, token in added.items()}
    free = [number for number, token in added.items() if not token.special and token.content not in TOOL_CALL_MARKERS]
    structure = build_structure(request, model.tool_call_format, tokens.get, sorted(free))
    if structure.grammar is not None and request.ignore_eos:
        message = f"ignore_eos can't be combined with {structure.param}, whose answers end where their form does"
        raise ApiError(400, message, param="ignore_eos")
    return structure


def plan_chat_tasks(model: ServedModel, request: ChatRequest) -> tuple[AnswerStructure, list[GenerationTask]]:
    """Return the structure of the answers, and a task for each. Raises ApiError."""
    structure = read_structure(model, request)
    return structure, make_chat_tasks(model, request, structure.tools)


def plan_completion_tasks(
    model: ServedModel, request: CompletionRequest
) -> tuple[AnswerStructure, list[GenerationTask]]:
    """Return the structure of the answers, and a task for each. Raises ApiError."""
    return read_structure(model, request), make_completion_tasks(model, request)


async def add_guides(
    model: ServedModel, tasks: list[GenerationTask], structure: AnswerStructure, client: str
) -> list[GenerationTask]:
    """Return the tasks, each with a guide if their answers have a grammar. Raises ApiError.

    client: the address of the client; clients take turns in compiling.
    """
    if structure.grammar is None:
        return tasks
    lengths = [len(task.prompt) for task in tasks]
    guides = await model.grammar_compiler.make_guides(
        structure.grammar, structure.schema_owners, lengths, structure.param, client
    )
    # The trigger of calls may be a special token, and the grammar allows no other special tokens in the text.
    shows_all, trigger = (
        structure.tool_call_format is not None and structure.tool_call_format.trigger is not None,
        structure.trigger_token,
    )
    return [
        replace(task, guide=guide, keeps_special_tokens=shows_all, tool_call_trigger=trigger)
        for task, guide in zip(tasks, guides, strict=True)
    ]


def choose_formatter(structure: AnswerStructure) -> ChatFormatter:
    return (
        ChatFormatter()
        if structure.tool_call_format is None
        else ToolCallFormatter(structure.tool_call_format, structure.function_names, structure.calls_begin)
    )
