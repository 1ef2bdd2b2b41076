"""How long an engine's end may take, so that no request is lost and no answer is cut."""

from hone_api.inferenceservices.spec import InferenceServiceSpec

# After this the kubelet kills it, whatever it still answers; spec.pod.terminationGracePeriodSeconds changes it.
GRACE_SECONDS = 600
# For so long it still takes requests: until every node knows that no more are to be sent to it.
DRAIN_SECONDS = 10
# For so much longer while requests still come.
LATEST_SECONDS = 60
# For a clean end, once all answers are complete.
CLEAN_END_SECONDS = 30
# The preStop hook of engines that end at once when they are told to.
SLEEP = {"sleep": {"seconds": DRAIN_SECONDS}}


def grace_seconds(spec: InferenceServiceSpec) -> int:
    """Return the seconds after which the kubelet kills an engine that ends."""
    return spec.pod.termination_grace_period_seconds or GRACE_SECONDS


def finishing_seconds(spec: InferenceServiceSpec) -> int:
    """Return the seconds that are left to the answers that run."""
    return grace_seconds(spec) - DRAIN_SECONDS - LATEST_SECONDS - CLEAN_END_SECONDS
