"""The command `hone doctor`."""

import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from hone.errors import ClientError

from hone_cli.commands import options
from hone_cli.doctor import report
from hone_cli.doctor.checks.findings import UNUSABLE, Finding, find_exit_code
from hone_cli.ui import output

if TYPE_CHECKING:
    from hone.kube.cluster import Cluster

    from hone_cli.doctor.checks.cluster_facts import ClusterFacts


Local = Annotated[bool, typer.Option("--local", help="Check this machine, not a cluster.")]
Deep = Annotated[
    bool,
    typer.Option(
        "--deep",
        help="Also start a pod with one GPU of the runtime image, which checks device files, hub and images from a "
        "node. It is deleted at the end.",
    ),
]
OnNode = Annotated[
    str | None, typer.Option("--node", help="Node for the pod of --deep (default: one with a free GPU).")
]
Seconds = Annotated[int, typer.Option("--timeout", min=10, help="Seconds that the pod of --deep may take.")]
Output = Annotated[options.Format, typer.Option("--output", "-o", help="Format of the report.")]


def command(
    local: Local = False,
    deep: Deep = False,
    node: OnNode = None,
    timeout: Seconds = 600,
    format_: Output = options.Format.TABLE,
    namespace: options.Namespace = None,
    context: options.Context = None,
    verbose: options.Verbose = False,
) -> None:
    """Report what a cluster has and lacks for Hone; or this machine, with --local or where no kubeconfig is found.

    Exits 0 when nothing failed (warnings included), 1 when something failed, 2 when the result can't be used: no
    cluster was reached, wrong usage, or a necessary fact could not be read.
    """
    if local and (deep or node or namespace or context):
        raise typer.BadParameter("--local checks no cluster: leave out --deep, --node, --namespace and --context")
    if node and not deep:
        raise typer.BadParameter("--node is for the pod of --deep: add --deep")
    asks_for_cluster = bool(deep or namespace or context)
    scope: Literal["local", "cluster"]
    try:
        if local or not (asks_for_cluster or has_kubeconfig()):
            if not local:
                output.print_hint("No kubeconfig was found: this machine is checked, as with --local.")
            findings, scope = check_here(), "local"
        else:
            findings, scope = check_cluster(namespace, context, deep, node, timeout), "cluster"
    except ClientError as problem:
        output.print_failure(problem)
        raise typer.Exit(UNUSABLE) from None
    show = report.print_json if format_ is options.Format.JSON else report.print_table
    show(findings, scope)
    raise typer.Exit(find_exit_code(findings))


def has_kubeconfig() -> bool:
    """Return whether the user has a kubeconfig; a KUBECONFIG that names missing files means one, too."""
    return bool(os.environ.get("KUBECONFIG")) or Path("~/.kube/config").expanduser().exists()


def check_here() -> list[Finding]:
    """Return the findings about this machine."""
    from hone_cli.doctor import machine, machine_findings

    return machine_findings.check_machine(machine.collect_machine(dict(os.environ)))


def check_cluster(
    namespace: str | None, context: str | None, deep: bool, node: str | None, timeout: int
) -> list[Finding]:
    """Return the findings about the cluster. Raises ClientError when it can't be reached."""
    from hone.kube import cluster as clusters
    from hone.objects import operators

    from hone_cli.doctor import cluster_reader, deep_findings
    from hone_cli.doctor.checks import addons, gpu_drivers, gpus, installation, nodes, storage
    from hone_cli.doctor.checks.findings import Unread

    cluster = clusters.connect(context, namespace)
    facts = cluster_reader.collect_facts(cluster)
    found = () if isinstance(facts.operators, Unread) else facts.operators
    images = operators.find_images(found)
    findings = [
        *nodes.check_nodes(facts),
        *gpus.check_gpus(facts),
        *gpu_drivers.check_gpu_drivers(facts),
        *storage.check_storage(facts),
        *installation.check_installation(facts, metadata.version("hone")),
        *addons.check_addons(facts),
    ]
    if not deep:
        return [*findings, *deep_findings.report_unprobed(images)]
    return [*findings, *_check_from_node(cluster, facts, images, node, timeout)]


def _check_from_node(
    cluster: "Cluster", facts: "ClusterFacts", images: dict[str, str], node: str | None, timeout: int
) -> Sequence[Finding]:
    from hone.objects import operators

    from hone_cli.doctor import deep_findings, machine, probe_pod
    from hone_cli.doctor.checks.findings import Unread

    if deep_findings.RUNTIME not in images:
        message = "the default images are those of Hone's operator, which was not found"
        return deep_findings.report_impossible(message, "See the check operator.")
    if node and not isinstance(facts.nodes, Unread) and node not in {each.name for each in facts.nodes}:
        raise ClientError(f"--node {node}: the cluster has no such node", "Choose one of `kubectl get nodes`.")
    groups = operators.find_gpu_groups(() if isinstance(facts.operators, Unread) else facts.operators)
    target = probe_pod.choose_target(facts, node, groups)
    others = [image for value, image in images.items() if value != deep_findings.RUNTIME]
    hub = machine.find_hub(os.environ)
    probed = probe_pod.run_probe(cluster, images[deep_findings.RUNTIME], target, hub, others, timeout)
    return deep_findings.check_probed(probed, images)
