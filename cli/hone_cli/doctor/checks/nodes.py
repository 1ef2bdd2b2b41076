"""Check nodes: whether they exist, are ready, and accept pods. Pure."""

from hone_api.pods.node_taints import find_node_phase
from hone_api.schema.manifests import quote_text

from hone_cli.doctor.checks.cluster_facts import ClusterFacts, Node, Taint
from hone_cli.doctor.checks.findings import Finding, Unread, count_nodes, join_names, report_unread

# The taint that Hone's pods with GPUs tolerate without being asked to.
TOLERATED = "amd.com/gpu"
# Judged with the GPUs' health.
AMDS = ("amd-gpu-unhealthy", "amd-dcm")
# Kubernetes itself sets these taints, and reports the cause as a condition.
BY_CONDITION = "node.kubernetes.io/"


def check_nodes(facts: ClusterFacts) -> list[Finding]:
    """Return the findings about nodes in general."""
    if isinstance(facts.nodes, Unread):
        return [report_unread("nodes", "The nodes", facts.nodes)]
    return [_check_readiness(facts.nodes), *_check_taints(facts.nodes)]


def needs_toleration(taint: Taint) -> bool:
    """Return whether the user has to tolerate the taint in spec.pod.tolerations."""
    is_passing = taint.key.startswith(BY_CONDITION) or find_node_phase(taint.key)
    return taint.key not in (TOLERATED, *AMDS) and not is_passing


def _check_readiness(nodes: tuple[Node, ...]) -> Finding:
    lost = [node.name for node in nodes if not node.is_ready]
    cordoned = [node.name for node in nodes if node.is_ready and node.is_cordoned]
    open_ = len(nodes) - len(lost) - len(cordoned)
    message = f"{open_} of {count_nodes(len(nodes))} can take pods"
    if not nodes:
        return Finding("nodes", "failed", "The cluster has no nodes", "Add nodes with AMD GPUs.")
    parts, remedies = [], []
    if lost:
        parts.append(f"{len(lost)} not ready: {join_names(lost)}")
        remedies.append("Look at `kubectl describe node NAME` of each that is not ready.")
    if cordoned:
        parts.append(f"{len(cordoned)} cordoned: {join_names(cordoned)}")
        remedies.append("Run `kubectl uncordon NAME` when the maintenance of a cordoned node is over.")
    if not parts:
        return Finding("nodes", "ok", message)
    return Finding("nodes", "warning" if open_ else "failed", f"{message}; {'; '.join(parts)}", " ".join(remedies))


def _check_taints(nodes: tuple[Node, ...]) -> list[Finding]:
    tainted: dict[Taint, list[str]] = {}
    with_gpus = [node for node in nodes if node.has_gpus()]
    for node in with_gpus:
        for taint in filter(needs_toleration, node.taints):
            tainted.setdefault(taint, []).append(node.name)
    if not tainted:
        return [_report_tolerated(with_gpus)] if with_gpus else []
    found = "; ".join(
        f"{taint} on {count_nodes(len(names))} ({join_names(names)})"
        for taint, names in sorted(tainted.items(), key=lambda item: -len(item[1]))
    )
    tolerations = ", ".join(_write_toleration(taint) for taint in tainted)
    return [
        Finding(
            "taints",
            "warning",
            f"Nodes with AMD GPUs have taints that Hone's pods do not tolerate: {found}",
            f"To run on these nodes, set spec.pod.tolerations: [{tolerations}].",
        )
    ]


def _report_tolerated(nodes: list[Node]) -> Finding:
    """Return the finding where no taint has to be tolerated; nodes that come or go take no pods all the same."""
    message = "No node with AMD GPUs has a taint that must be tolerated"
    passing = {node.name: taint for node in nodes for taint in node.taints if find_node_phase(taint.key)}
    if not passing:
        return Finding("taints", "ok", message)
    found = ", ".join(sorted(f"{name} ({taint})" for name, taint in passing.items()))
    return Finding(
        "taints",
        "warning",
        f"{message}; {count_nodes(len(passing))} being prepared or removed by the cluster: {found}",
        "Wait, or look at the program that sets the taint, if it stays.",
    )


def _write_toleration(taint: Taint) -> str:
    value = f"operator: Equal, value: {quote_text(taint.value)}" if taint.value else "operator: Exists"
    return f"{{key: {quote_text(taint.key)}, {value}, effect: {taint.effect}}}"
