"""The `hone` command, which is `kubectl hone` as well."""

import sys
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
from hone_cli.ui import output

app = typer.Typer(
    name="hone",
    help="Fine-tune large language models and serve them: here, or in a Kubernetes cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("doctor")(doctor.command)
app.command("validate")(validate.command)
app.command("plan")(plan.command)
app.command("prepare")(prepare.command)
app.command("run")(run.command)
app.command("merge")(merge.command)
app.command("serve")(serve.command)
app.command("chat")(chat.command)
app.command("watch")(watch.command)
app.command("list")(objects.list_command)
app.command("describe")(objects.describe_command)
app.command("logs")(logs.command)
app.command("suspend")(suspend.suspend_command)
app.command("resume")(suspend.resume_command)
app.command("delete")(delete.command)
app.command("pull")(artifacts.pull_command)
app.command("report")(artifacts.report_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 success, 1 a failure, 2 wrong usage, or the exit code of the trainer or engine."""
    plugin = Path(sys.argv[0]).name == "kubectl-hone"
    make_output_safe()
    try:
        code = app(arguments, prog_name="kubectl hone" if plugin else "hone", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.TyperException as error:
        from typer import rich_utils

        error.message = make_printable(error.message)  # a message about wrong usage quotes the user's input
        rich_utils.rich_format_error(error)  # type: ignore[arg-type] # declared for the class below
        sys.exit(error.exit_code)
    except typer.Abort:
        output.hint("Stopped.")
        sys.exit(1)
    except (HoneError, output.Problem, OSError) as error:
        output.print_failure(error)
        sys.exit((isinstance(error, HoneError) and error.reason.exit_code) or 1)
