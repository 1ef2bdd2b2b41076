"""The `hone` command, which is `kubectl hone` as well."""

import sys
from collections.abc import Callable
from pathlib import Path

import typer
from hone_api.io.terminal import make_output_safe, make_printable
from hone_api.reasons import HoneError

from hone_cli.commands import (
    artifacts,
    chat,
    delete,
    logs,
    merge,
    objects,
    plan,
    prepare,
    run,
    serve,
    suspend,
    validate,
    watch,
)
from hone_cli.doctor import command as doctor
from hone_cli.tensorboard import command as tensorboard
from hone_cli.ui import output

app = typer.Typer(
    name="hone",
    help="Fine-tune large language models and serve them: here, or in a Kubernetes cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "doctor": doctor.command,
    "validate": validate.command,
    "plan": plan.command,
    "prepare": prepare.command,
    "run": run.command,
    "merge": merge.command,
    "serve": serve.command,
    "chat": chat.command,
    "watch": watch.command,
    "list": objects.list_command,
    "describe": objects.describe_command,
    "logs": logs.command,
    "suspend": suspend.suspend_command,
    "resume": suspend.resume_command,
    "delete": delete.command,
    "pull": artifacts.pull_command,
    "report": artifacts.report_command,
    "push": artifacts.push_command,
    "tensorboard": tensorboard.command,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 success, 1 a failure, 2 wrong usage, or the exit code of the trainer or engine."""
    plugin = Path(sys.argv[0]).name == "kubectl-hone"
    make_output_safe()
    output.show_notices()
    try:
        code = app(arguments, prog_name="kubectl hone" if plugin else "hone", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.TyperException as error:
        from typer import rich_utils

        error.message = make_printable(error.message)  # a message about wrong usage quotes the user's input
        rich_utils.rich_format_error(error)  # type: ignore[arg-type] # declared for the class below
        sys.exit(error.exit_code)
    except typer.Abort:
        output.print_hint("Stopped.")
        sys.exit(1)
    except (HoneError, OSError) as error:
        output.print_failure(error)
        sys.exit((isinstance(error, HoneError) and error.reason.exit_code) or 1)
