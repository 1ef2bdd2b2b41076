"""The seconds that the shutdown of an engine may take, so that no request is lost and no answer is cut."""

from hone_api.inferenceservices.spec import InferenceServiceSpec

# After this the kubelet kills the engine, also during an answer; spec.pod.terminationGracePeriodSeconds changes it.
GRACE_SECONDS = 600
# How long the engine still accepts requests: until every node has removed it from the Service's endpoints.
DRAIN_SECONDS = 10
# How much longer it accepts requests while some still arrive.
EXTRA_DRAIN_SECONDS = 60
# The time for a clean exit, once all answers are complete.
EXIT_SECONDS = 30
# The preStop hook of engines that exit at once after SIGTERM.
SLEEP_HOOK = {"sleep": {"seconds": DRAIN_SECONDS}}


def get_grace_seconds(spec: InferenceServiceSpec) -> int:
    """Return the seconds after which the kubelet kills a terminating engine."""
    return spec.pod.termination_grace_period_seconds or GRACE_SECONDS


def get_finishing_seconds(spec: InferenceServiceSpec) -> int:
    """Return the seconds that running answers have to complete."""
    return get_grace_seconds(spec) - DRAIN_SECONDS - EXTRA_DRAIN_SECONDS - EXIT_SECONDS
