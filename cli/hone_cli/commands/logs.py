"""`hone logs`: print the log of a job's preparation, trainer or push, or of a service's engine."""

from typing import Annotated

import typer
from hone.objects.log_target import Stage

from hone_cli.commands import options
from hone_cli.ui import output

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Print new lines as they come, until the pod ends.")]
Previous = Annotated[
    bool, typer.Option("--previous", "-p", help="The log before the last restart: of the pod, or of the container.")
]
Rank = Annotated[int, typer.Option("--rank", min=0, help="Rank of the trainer whose pod is meant.")]
StageName = Annotated[
    Stage | None,
    typer.Option("--stage", help="Stage of the job (default: train; before it starts, prepare).", case_sensitive=False),
]


def command(
    name: options.ObjectName,
    follow: Follow = False,
    previous: Previous = False,
    rank: Rank = 0,
    stage: StageName = None,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Print the log of a job's trainer (before it starts, of the preparation), or of a service's newest engine.

    --stage prints the log of the preparation, of the trainer, or of the push.
    """
    from hone.kube import cluster, logs, lookup
    from hone.objects import log_target

    if follow and previous:
        raise typer.BadParameter("the previous log has ended: leave out --follow or --previous")
    connection = cluster.connect(context, namespace)
    kind, body = lookup.find_object(connection, name)
    pods = lookup.list_pods(connection, {kind.label: body["metadata"]["name"]})
    target = log_target.choose_target(body, pods, rank=rank, is_previous=previous, stage=stage)
    others = f"; {target.others} more engine pods" if target.others else ""
    if target.other_stages:
        others = f"; there are logs of {' and '.join(f'--stage {each}' for each in target.other_stages)}"
    output.print_hint(f"Pod {target.pod}, container {target.container}{others}:")
    for line in logs.follow_log(connection, target) if follow else logs.read_log(connection, target):
        output.print_line(line)
