"""Check optional additions: Kueue, and the metrics APIs. Pure."""

from hone_api.schema.manifests import quote_text

from hone_cli.doctor.checks.cluster_facts import ClusterFacts
from hone_cli.doctor.checks.findings import Finding, Unread, join_names, report_unread

KUEUE = "kueue.x-k8s.io"
PROMETHEUS = "monitoring.coreos.com"
USAGE, CUSTOM = "metrics.k8s.io", "custom.metrics.k8s.io"


def check_addons(facts: ClusterFacts) -> list[Finding]:
    """Return the findings about what is optional."""
    if isinstance(facts.groups, Unread):
        return [
            report_unread(check, what, facts.groups, is_required=False)
            for check, what in (("kueue", "The API groups, Kueue's among them,"), ("metrics", "The APIs of metrics"))
        ]
    return [
        _check_kueue(facts),
        _check_service(
            facts,
            "usageMetrics",
            USAGE,
            "metrics-server, for `kubectl top`",
            "Install metrics-server, if you want `kubectl top`. Hone needs none.",
        ),
        _check_prometheus(facts.groups),
        _check_service(
            facts,
            "autoscalingMetrics",
            CUSTOM,
            "custom metrics, which spec.autoscaling of an InferenceService needs",
            "For spec.autoscaling, install an adapter such as prometheus-adapter with the rule in "
            "docs/engines/autoscaling.md. Without autoscaling it is not needed.",
        ),
    ]


def _check_kueue(facts: ClusterFacts) -> Finding:
    assert not isinstance(facts.groups, Unread)
    if KUEUE not in facts.groups:
        return Finding("kueue", "ok", "Kueue is not installed: jobs start as soon as they fit", is_required=False)
    if isinstance(facts.local_queues, Unread):
        return report_unread("kueue", "Kueue is installed, and its LocalQueues", facts.local_queues, is_required=False)
    if not facts.local_queues:
        return Finding(
            "kueue",
            "warning",
            f"Kueue is installed, and namespace {facts.namespace} has no LocalQueue",
            "To queue jobs, make a LocalQueue there, and label jobs with kueue.x-k8s.io/queue-name.",
            is_required=False,
        )
    message = f"Kueue is installed; LocalQueues of namespace {facts.namespace}: {join_names(facts.local_queues)}"
    remedy = f"To queue a job, label it kueue.x-k8s.io/queue-name: {quote_text(min(facts.local_queues))}."
    return Finding("kueue", "ok", message, remedy, is_required=False)


def _check_prometheus(groups: frozenset[str]) -> Finding:
    if PROMETHEUS in groups:
        message = "The definitions of the Prometheus operator are there"
        return Finding("prometheus", "ok", message, is_required=False)
    return Finding(
        "prometheus",
        "warning",
        f"The definitions of the Prometheus operator ({PROMETHEUS}) are missing",
        "Leave the chart's prometheus.* values disabled; pods are annotated for scraping (prometheus.io/scrape).",
        is_required=False,
    )


def _check_service(facts: ClusterFacts, check: str, group: str, what: str, remedy: str) -> Finding:
    assert not isinstance(facts.groups, Unread)
    if group not in facts.groups and (isinstance(facts.services, Unread) or group not in facts.services):
        return Finding(check, "warning", f"Nothing serves {group}: {what}", remedy, is_required=False)
    if isinstance(facts.services, Unread):
        message = f"{group} is registered; whether it answers could not be read: {facts.services.reason}"
        remedy = "Ask an administrator to run `hone doctor`."
        return Finding(check, "unknown", message, remedy, is_required=False)
    if facts.services.get(group) is False:
        message = f"{group} is registered, and does not answer"
        return Finding(check, "warning", message, f"Look at `kubectl get apiservices`. {remedy}", is_required=False)
    return Finding(check, "ok", f"{group} is served", is_required=False)
