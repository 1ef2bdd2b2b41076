"""Explain why a node can't pull an image, from the registry's message."""

import re

from hone_api.reasons import IMAGE_PULL_FAILED, HoneError

IMAGE_PULL_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
}

# The kubelet writes the reference before the registry's message, and alternates between trying and waiting.
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*": (?:ErrImagePull: )?')
_ADVICE = (
    (
        r"unauthorized|denied|authentication required|no basic auth|401|403",
        "Name a Secret with the registry's credentials in spec.pod.imagePullSecrets, or correct spec.pod.image: "
        "registries also answer so for images that don't exist.",
    ),
    (r"not found|manifest unknown", "Correct spec.pod.image, or push that tag."),
    (r"no match for platform|exec format", "Push the image for the node's architecture, or name another."),
    (r"toomanyrequests|rate limit|429", "Wait, or pull with credentials or from a mirror."),
    (r"no space left", "Free disk space on the node."),
    (
        r"no such host|dial tcp|i/o timeout|connection refused|deadline exceeded|x509|server gave HTTP response",
        "The node does not reach the registry: check its network, DNS, proxy and certificates.",
    ),
    (r"couldn't parse image|invalid reference", "Correct spec.pod.image: it is no valid reference."),
)


def explain_image_pull(reason: str, message: str, image: str) -> HoneError:
    """Return the failure for a waiting state of a container. `reason`, `message`: that state's reason and message."""
    cause = _BACK_OFF.sub("", message)
    remedy = next((advice for pattern, advice in _ADVICE if re.search(pattern, cause, re.IGNORECASE)), None)
    return HoneError(IMAGE_PULL_FAILED, f"{image}: {cause or reason}", remedy=remedy)
