"""Add the structure that a request asks for to its answers: the grammar before, and the tool calls after generation."""

from dataclasses import replace
from typing import Any

from hone_server.generation.generate import Job, Model, chat_jobs, completion_jobs
from hone_server.http.formatting import ChatWire, ToolWire
from hone_server.protocol.errors import ApiError
from hone_server.protocol.requests import ChatRequest, CompletionRequest, GenerationRequest
from hone_server.structured.grammars import Structure, structure_of
from hone_server.structured.tool_formats import MARKS


def read_structure(model: Model, request: GenerationRequest) -> Structure:
    """Return the structure of the answers. Raises ApiError."""
    if request.response_format is None and not getattr(request, "tools", None):
        return structure_of(request, None, lambda _: None, [])
    added: dict[int, Any] = model.tokenizer.added_tokens_decoder
    tokens = {token.content: number for number, token in added.items()}
    free = [number for number, token in added.items() if not token.special and token.content not in MARKS]
    structure = structure_of(request, model.tool_form, tokens.get, sorted(free))
    if structure.grammar is not None and request.ignore_eos:
        message = f"ignore_eos can't be combined with {structure.param}, whose answers end where their form does"
        raise ApiError(400, message, param="ignore_eos")
    return structure


def plan_chat(model: Model, request: ChatRequest) -> tuple[Structure, list[Job]]:
    """Return the structure of the answers, and a job for each. Raises ApiError."""
    structure = read_structure(model, request)
    return structure, chat_jobs(model, request, structure.tools)


def plan_completion(model: Model, request: CompletionRequest) -> tuple[Structure, list[Job]]:
    """Return the structure of the answers, and a job for each. Raises ApiError."""
    return read_structure(model, request), completion_jobs(model, request)


async def guide_jobs(model: Model, jobs: list[Job], structure: Structure) -> list[Job]:
    """Return the jobs, each with a guide if their answers have a grammar. Raises ApiError."""
    if structure.grammar is None:
        return jobs
    lengths = [len(job.prompt) for job in jobs]
    guides = await model.guidance.make_guides(structure.grammar, structure.owners, lengths, structure.param)
    # The trigger of calls may be a special token, and the grammar allows no other special tokens in the text.
    shows_all, trigger = structure.form is not None and structure.form.trigger is not None, structure.trigger
    return [
        replace(job, guide=guide, shows_all=shows_all, trigger=trigger) for job, guide in zip(jobs, guides, strict=True)
    ]


def choose_wire(structure: Structure) -> ChatWire:
    return ChatWire() if structure.form is None else ToolWire(structure.form, structure.names, structure.begin)
