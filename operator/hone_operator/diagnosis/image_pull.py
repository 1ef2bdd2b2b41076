"""Explain why a node can't pull an image, from the registry's message."""

import re

from hone_api.reasons import IMAGE_PULL_FAILED, HoneError

IMAGE_PULL_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
    # Of CRI-O, as on OpenShift: short names, and policies for signatures.
    "ImageInspectError",
    "SignatureValidationFailed",
}

# The kubelet writes the reference before the registry's message, and alternates between trying and waiting.
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*": (?:ErrImagePull: )?')
_ADVICE = (
    (
        r"short[ -]name",
        "Write the registry into spec.pod.image, such as docker.io/library/NAME, or into the chart's value that names "
        "the image: the nodes don't complete short names.",
    ),
    (
        r"signature (?:was required|validation)|no signature exists|SignatureValidation",
        "The nodes accept only signed images: name one in spec.pod.image, or ask whoever runs the policy to allow this "
        "one.",
    ),
    (
        r"pull policy of Never",
        "Set spec.pod.imagePullPolicy: IfNotPresent, or load the image on the node.",
    ),
    (
        # No part of a digest, an address or a port.
        r"unauthorized|(?<!permission )denied|authentication required|no basic auth|(?<![\w.:-])40[13](?![\w.:-])",
        "Name a Secret with the registry's credentials in spec.pod.imagePullSecrets, or correct spec.pod.image: "
        "registries also answer so for images that don't exist.",
    ),
    (r"not found|manifest unknown", "Correct spec.pod.image, or push that tag."),
    (r"no match for platform|exec format", "Push the image for the node's architecture, or name another."),
    (
        r"toomanyrequests|rate limit|QPS exceeded|(?<![\w.:-])429(?![\w.:-])",
        "Wait, or pull with credentials or from a mirror.",
    ),
    (r"no space left", "Free disk space on the node."),
    (
        r"no such host|dial tcp|i/o timeout|connection refused|connection reset|unexpected EOF|"
        r"(?<![\w.:-])50[0234](?![\w.:-])|TLS handshake|server misbehaving|deadline exceeded|x509|"
        r"server gave HTTP response",
        "The node does not reach the registry: check its network, DNS, proxy and certificates.",
    ),
    (r"couldn't parse image|invalid reference", "Correct spec.pod.image: it is no valid reference."),
)


def explain_image_pull(reason: str, message: str, image: str) -> HoneError:
    """Return the failure for a waiting state of a container. `reason`, `message`: that state's reason and message."""
    cause = _BACK_OFF.sub("", message)
    remedy = next((advice for pattern, advice in _ADVICE if re.search(pattern, cause, re.IGNORECASE)), None)
    return HoneError(IMAGE_PULL_FAILED, f"{image}: {cause or reason}", remedy=remedy)
