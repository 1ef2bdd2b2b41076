"""Recognize, by name, images of engines that start only as root.

Since 3.1, images of Text Generation Inference have Python below /root, which no other user can read. As another user
they end with `error while loading shared libraries: libpython3.11.so.1.0`
(https://github.com/huggingface/text-generation-inference/issues/3082); no later image changed that. In: the image's
name and the user's options. Out: the options with user root, or why that is not allowed. Next:
inferenceservice/children.py.
"""

import re

from hone_api.pods.pod_options import PodOptions
from hone_api.reasons import INVALID_SPEC, HoneError

from hone_operator.pods.pod_levels import BASELINE, CHART_VALUE, RESTRICTED

# Matches the last part of the name, which a mirror keeps.
_ROOT_IMAGES = re.compile(r"(?:^|/)text-generation-inference(?:[:@]|$)")
_ROOT_SECURITY = {"runAsUser": 0, "runAsNonRoot": False}


def run_as_root_if_needed(options: PodOptions, image: str | None) -> PodOptions:
    """Return the options, with user root for the engine's container where its image needs that."""
    if not _needs_root(options, image):
        return options
    security = _ROOT_SECURITY | (options.container_security_context or {})
    return options.model_copy(update={"container_security_context": security})


def explain_root(options: PodOptions, image: str | None, level: str) -> HoneError | None:
    """Return why the image can't start at this Pod Security level; None where it can, or where that is unknown."""
    if level != RESTRICTED or not _needs_root(options, image):
        return None
    message = (
        f"Image {image} starts only as root, which needs level {BASELINE}; pods of Hone may have level {level} (the "
        f"chart's value {CHART_VALUE})"
    )
    remedy = (
        f"Set spec.engine: vllm, or let whoever runs Hone set {CHART_VALUE}: {BASELINE}. Where this image was changed "
        "so that it works as another user, set spec.pod.securityContext.runAsUser to that user."
    )
    return HoneError(INVALID_SPEC, message, remedy=remedy)


def _needs_root(options: PodOptions, image: str | None) -> bool:
    """Return whether the image needs root, and the options name no other user."""
    names_user = any(
        "runAsUser" in (context or {}) for context in (options.security_context, options.container_security_context)
    )
    return bool(image and _ROOT_IMAGES.search(image)) and not names_user
