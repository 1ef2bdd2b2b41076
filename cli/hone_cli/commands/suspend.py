"""`hone suspend` and `hone resume`: stop a FineTuneJob with a checkpoint, and continue it."""

from hone_cli.commands import options
from hone_cli.ui import output


def suspend_command(
    name: options.JobName,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Suspend a FineTuneJob: its trainer saves a checkpoint, and its GPUs are free."""
    set_suspend(name, namespace, context, suspend=True)


def resume_command(
    name: options.JobName,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Resume a suspended FineTuneJob at its newest checkpoint."""
    set_suspend(name, namespace, context, suspend=False)


def set_suspend(reference: str, namespace: str | None, context: str | None, *, suspend: bool) -> None:
    """Set spec.suspend where that changes something. Raises ClientError."""
    from hone.kube import changes, cluster
    from hone.objects import suspension

    name = suspension.parse_job(reference, "suspend" if suspend else "resume")
    connection = cluster.connect(context, namespace)
    is_change, message = changes.set_suspend(connection, name, suspend=suspend)
    output.print_line(message)
    if is_change:
        output.print_next_step("Follow it with", f"hone watch {name} {connection.flags}")
