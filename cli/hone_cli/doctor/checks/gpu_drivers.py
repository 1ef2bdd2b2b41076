"""Check the programs that offer GPUs to Kubernetes: AMD's labeller, device plugin, or driver for claims. Pure."""

import re

from hone_cli.doctor.checks.cluster_facts import DRIVER, ClusterFacts, find_properties
from hone_cli.doctor.checks.findings import Finding, Unread, count_nodes, join_names, report_unread
from hone_cli.doctor.checks.gpus import CLAIMED, DEFAULT, count_gpus, list_claimed_resources

# Parts of the names and tags of AMD's images.
LABELLER, PLUGIN, CLAIMER = "labeller", "k8s-device-plugin", "dra-driver"
# Parts of the names of AMD's images, or of a mirror's path. `amd64` occurs in every vendor's.
_MAKERS = re.compile(r"rocm.*|amd|amdgpu.*")
_WORDS = re.compile(r"[^a-z0-9]+")


def check_gpu_drivers(facts: ClusterFacts) -> list[Finding]:
    """Return the findings about labeller, device plugin and driver for claims."""
    if isinstance(facts.nodes, Unread):
        return [report_unread("gpuDriver", "The nodes", facts.nodes)]
    return [_check_driver(facts), *_check_labels(facts)]


def _check_driver(facts: ClusterFacts) -> Finding:
    assert not isinstance(facts.nodes, Unread)
    plugin, claimer = _find_pods(facts, PLUGIN), _find_pods(facts, CLAIMER)
    is_plugged = any(count_gpus(node, is_capacity=True) for node in facts.nodes)
    devices, classes = facts.devices, facts.device_classes
    is_claimed = not isinstance(devices, Unread) and bool(devices)
    if is_plugged and is_claimed:
        return Finding(
            "gpuDriver",
            "warning",
            "AMD's device plugin and its driver for Dynamic Resource Allocation both offer GPUs",
            "Keep one of the two: on the same node both would give away the same GPU.",
        )
    if is_plugged:
        return _judge_pods("AMD's device plugin offers GPUs", plugin)
    if is_claimed:
        if not isinstance(classes, Unread) and DRIVER not in classes:
            return Finding(
                "gpuDriver",
                "failed",
                f"AMD's driver publishes devices, and there is no DeviceClass {DRIVER}",
                "Install the DeviceClass of AMD's driver: its Helm chart has it.",
            )
        rest = f"{DEFAULT} is absent, and a pod that asks for it stays Pending"
        if DEFAULT in list_claimed_resources(facts):
            rest = f"for a pod that asks for {DEFAULT}, Kubernetes makes a claim"
        return _judge_pods(
            f"AMD's driver for Dynamic Resource Allocation (DeviceClass {DRIVER}) offers GPUs; {rest}", claimer
        )
    if isinstance(devices, Unread):
        return report_unread("gpuDriver", "No device plugin offers GPUs, and ResourceSlices", devices)
    has_class = not isinstance(classes, Unread) and DRIVER in classes
    remedy = "Install AMD's GPU operator, or its device plugin."
    for name, pods in (("device plugin", plugin), ("driver", claimer)):
        if pods is not None:
            message = f"AMD's {name} is installed ({pods[1]} of {pods[0]} pods ready), and offers no GPU"
            remedy = f"Look at the log of the {name}'s pods: is amdgpu loaded on the nodes?"
            return Finding("gpuDriver", "failed", message, remedy)
    if has_class:
        message = f"There is a DeviceClass {DRIVER}, and no ResourceSlice has a device of it"
        return Finding("gpuDriver", "failed", message, f"Install AMD's driver; objects then ask for {CLAIMED}.")
    return Finding("gpuDriver", "failed", "Neither a device plugin nor a driver offers AMD GPUs", remedy)


def _check_labels(facts: ClusterFacts) -> list[Finding]:
    assert not isinstance(facts.nodes, Unread)
    nodes = [node for node in facts.nodes if node.has_gpus()]
    bare = [node.name for node in nodes if not find_properties(node, "device-id")]
    if not nodes:
        return []
    if not bare:
        return [Finding("gpuLabels", "ok", f"{count_nodes(len(nodes))} with AMD GPUs have the labels of the labeller")]
    pods = _find_pods(facts, LABELLER)
    remedy = (
        "Start AMD's node labeller with --device-id (and --vram, --compute-memory-partition)."
        if pods
        else "Install AMD's node labeller, with --device-id, --vram and --compute-memory-partition."
    )
    message = (
        f"{len(bare)} of {count_nodes(len(nodes))} with AMD GPUs have no label amd.com/gpu.device-id: "
        f"{join_names(bare)}. Whether a model fits into their memory is not judged before it starts"
    )
    return [Finding("gpuLabels", "warning", message, remedy)]


def _find_pods(facts: ClusterFacts, part: str) -> tuple[int, int] | None:
    """Return how many pods an AMD DaemonSet should have, and has; None if none is known."""
    if isinstance(facts.daemon_sets, Unread):
        return None
    found = [pods for image, pods in facts.daemon_sets.items() if _is_image(image, part)]
    return (sum(pods[0] for pods in found), sum(pods[1] for pods in found)) if found else None


def _is_image(image: str, part: str) -> bool:
    if part == PLUGIN and LABELLER in image:  # rocm/k8s-device-plugin:labeller-latest is the labeller
        return False
    return part in image and any(_MAKERS.fullmatch(word) for word in _WORDS.split(image))


def _judge_pods(message: str, pods: tuple[int, int] | None) -> Finding:
    if pods is None or pods[0] <= pods[1]:
        return Finding("gpuDriver", "ok", message)
    return Finding(
        "gpuDriver",
        "warning",
        f"{message}; {pods[1]} of its {pods[0]} pods are ready",
        "Look at its pods that are not ready: `kubectl get pods --all-namespaces`.",
    )
