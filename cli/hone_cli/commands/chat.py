"""`hone chat`: talk to an engine here, or to an InferenceService in the cluster."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from hone.errors import ClientError

from hone_cli.commands import options
from hone_cli.ui import completion, output

if TYPE_CHECKING:
    from hone.engine import Engine, Message, Model

# The models in this chat, each with its conversation so far.
Conversations = dict[str, "list[Message]"]

LOCAL_URL = "http://127.0.0.1:8000/v1"
COMMANDS = (
    "/models lists the models, /model NAME changes it, /beside NAME adds a second one that gets the same questions, "
    "/clear starts a new conversation, /exit ends"
)

Service = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]",
        help="InferenceService; left out: an engine here.",
        autocompletion=completion.complete_services,
    ),
]
Url = Annotated[str | None, typer.Option(help=f"Base URL of an engine (default: {LOCAL_URL}).")]
ModelName = Annotated[str | None, typer.Option("--model", help="Model to talk to (default: the adapter, if any).")]
SecondModel = Annotated[str | None, typer.Option("--beside", metavar="MODEL", help="Ask this model the same, too.")]
Text = Annotated[str | None, typer.Option("--message", "-m", help="Ask this, print the answer only, and end.")]


def command(
    name: Service = None,
    namespace: options.Namespace = None,
    context: options.Context = None,
    url: Url = None,
    model: ModelName = None,
    second_model: SecondModel = None,
    message: Text = None,
    verbose: options.Verbose = False,
) -> None:
    """Chat with an engine here, or with an InferenceService in the cluster."""
    if name and url:
        raise typer.BadParameter("give a NAME (an InferenceService) or --url, not both")
    with _connect_to_engine(name, namespace, context, url) as engine:
        models = engine.models()
        first = choose_model(models, model)
        conversations: Conversations = {first: []}
        if second_model is not None:
            conversations[choose_second_model(models, first, second_model)] = []
        if message is not None:
            ask_models(engine, conversations, message)
        else:
            hold_conversations(engine, conversations)


def choose_model(models: "list[Model]", wanted: str | None) -> str:
    """Return the model to talk to, and print the others if the user named none. Raises ClientError if there is none."""
    from hone import engine as engines

    chosen = engines.choose_model(models, wanted)
    others = ", ".join(model.id for model in models if model.id != chosen)
    if wanted is None and others:
        output.print_hint(f"Model: {chosen} (also there: {others})")
    return chosen


def choose_second_model(models: "list[Model]", first: str, wanted: str) -> str:
    """Return the second model. Raises ClientError when no model has this name, or it is the first model."""
    second = choose_model(models, wanted)
    if second == first:
        raise ClientError(f"{first} is already asked", "Name another model to compare it with; /models lists them.")
    return second


def print_model_answer(engine: "Engine", model: str, messages: "list[Message]") -> str:
    """Print the answer to a conversation as it comes, and return it."""
    return output.print_answer(engine.answer(model, messages))


def ask_models(engine: "Engine", conversations: "Conversations", question: str) -> None:
    """Print every model's answer, with its name if there are several; all are added to the histories, or none."""
    message = {"role": "user", "content": question}
    asked: Conversations = {model: [*history, message] for model, history in conversations.items()}
    if len(asked) > 1 and output.is_terminal():
        from hone_cli.commands.side_by_side import print_answers_in_columns

        answers = print_answers_in_columns(engine, asked, output.make_console())
    else:
        answers = {}
        for model, messages in asked.items():
            if len(asked) > 1:
                output.print_label(f"[{model}] ")
            answers[model] = print_model_answer(engine, model, messages)
    for model, messages in asked.items():
        conversations[model] = [*messages, {"role": "assistant", "content": answers[model]}]


def hold_conversations(engine: "Engine", conversations: "Conversations") -> None:
    """Read lines and answer them until /exit or the end of input. A failed answer leaves the history unchanged."""
    output.print_hint(f"Talking to {' and '.join(conversations)}. {COMMANDS}.")
    for line in _read_lines():
        if line.startswith("/"):
            if line == "/exit":
                return
            conversations = _run_command(line, engine, conversations)
            continue
        try:
            ask_models(engine, conversations, line)
        except ClientError as problem:
            output.print_failure(problem)
        except KeyboardInterrupt:
            output.print_hint("(stopped; this answer is forgotten)")


def _run_command(line: str, engine: "Engine", conversations: "Conversations") -> "Conversations":
    command, _, argument = line.partition(" ")
    first = next(iter(conversations))
    try:
        if command == "/models":
            for one in engine.models():
                output.print_hint(
                    f"{'*' if one.id in conversations else ' '} {one.id}{f' ({one.kind})' if one.kind else ''}"
                )
        elif command == "/model" and argument.strip():
            model = choose_model(engine.models(), argument.strip())
            output.print_hint(f"Talking to {model}.")
            return {model: conversations[first]}
        elif command == "/beside" and argument.strip():
            model = choose_second_model(engine.models(), first, argument.strip())
            output.print_hint(f"Talking to {first} and {model}, from the beginning.")
            return {first: [], model: []}
        elif command == "/clear":
            return {model: [] for model in conversations}
        else:
            output.print_hint(f"{COMMANDS}.")
    except ClientError as problem:
        output.print_failure(problem)
    return conversations


def _read_lines() -> Iterator[str]:
    """Yield the user's lines, without empty ones; Ctrl-C at the prompt and Ctrl-D end it."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # gives input() history and editing
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


@contextmanager
def _connect_to_engine(
    name: str | None, namespace: str | None, context: str | None, url: str | None
) -> "Iterator[Engine]":
    from hone.engine import Engine

    if name is None:
        yield Engine(url or LOCAL_URL, remedy="Start one here with hone serve DIR, give its --url, or name a service.")
        return
    from hone.kube import cluster, lookup, port_forward
    from hone.objects.names import SERVICE
    from hone.objects.views import require_available

    connection = cluster.connect(context, namespace)
    require_available(lookup.get_object(connection, SERVICE, name))
    with port_forward.forward_port(connection, name) as local:
        yield Engine(f"{local}/v1", remedy=f"Look at the service: kubectl describe hisvc {name}")
