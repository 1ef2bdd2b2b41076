"""Taints that other programs set on nodes for a while. Nobody should tolerate them, and they show why to wait.

The keys are those of Kubernetes' cloud providers, Cluster API, Cluster Autoscaler, Karpenter, network and storage
drivers, and the handlers of interruptions.
"""

import re
from typing import Literal

# The only taint below node.kubernetes.io/ that a person sets, and so a person has to remove.
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"

_STARTING = re.compile(
    r"node\.cloudprovider\.kubernetes\.io/uninitialized|node\.cluster\.x-k8s\.io/uninitialized|karpenter\.sh/unregistered|"
    r"[a-z0-9.-]{1,253}/agent-not-ready|(?:startup|status|ignore)-taint\.cluster-autoscaler\.kubernetes\.io/.*|"
    r"readiness\.k8s\.io/.*"
)
_LEAVING = re.compile(
    r"ToBeDeletedByClusterAutoscaler|karpenter\.sh/disrupt(?:ed|ion)|cloud\.google\.com/impending-node-termination|"
    r"node\.cloudprovider\.kubernetes\.io/shutdown|aws-node-termination-handler/.*"
)


def find_node_phase(key: str) -> Literal["starting", "leaving"] | None:
    """Return whether the taint is on a node that is being prepared or removed; None for any other taint."""
    if _STARTING.fullmatch(key):
        return "starting"
    return "leaving" if _LEAVING.fullmatch(key) else None
