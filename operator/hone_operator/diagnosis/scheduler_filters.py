"""What to do where the scheduler refuses nodes by rules that the nodes' own objects don't show.

In: the scheduler's message. Out: a remedy. Called by unschedulable.py, which compares resources, labels and taints.
"""

import re

_ADVICE = (
    (
        r"exceed max volume count",
        "A node can attach only so many volumes: wait until other pods with volumes have ended, or add nodes.",
    ),
    (
        r"didn't have free ports",
        "On one node only one pod can have a port of the host: leave out spec.pod.hostNetwork and hostPort, wait until "
        "the other pod has ended, or add nodes.",
    ),
    (
        r"didn't match pod topology spread constraints",
        "Correct spec.pod.topologySpreadConstraints: whenUnsatisfiable: ScheduleAnyway makes one a wish.",
    ),
    (r"didn't match pod (?:anti-)?affinity rules", "Correct podAffinity or podAntiAffinity in spec.pod.affinity."),
    (
        r"didn't satisfy existing pods anti-affinity rules",
        "The podAntiAffinity of pods on the nodes keeps this one away: correct the labels in spec.pod.labels that it "
        "selects, or add nodes.",
    ),
    (
        r"ReadWriteOncePod",
        "Another pod uses the claim, whose access mode is ReadWriteOncePod: wait until that pod has ended, or name "
        "another claim in the spec.",
    ),
)


def advise_on_filter(message: str) -> str | None:
    """Return the remedy; None where the message names no such rule."""
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, message)), None)
