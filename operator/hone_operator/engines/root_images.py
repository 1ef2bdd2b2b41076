"""Images of engines that start as root only, by their names.

Text Generation Inference's, since 3.1, has its Python below /root, which no other user can read: it ends with `error
while loading shared libraries: libpython3.11.so.1.0`
(https://github.com/huggingface/text-generation-inference/issues/3082). No later image changed that. In: the image's
name and what the user set. Out: the pod's options with the user root, or why that is not allowed. Next:
inferenceservice/children.py.
"""

import re

from hone_api.pods.pod_options import PodOptions
from hone_api.reasons import INVALID_SPEC, HoneError

from hone_operator.pods.pod_levels import BASELINE, RESTRICTED, VALUE

# By the last part of the name, which a mirror keeps.
_NEED_ROOT = re.compile(r"(?:^|/)text-generation-inference(?:[:@]|$)")
_ROOT = {"runAsUser": 0, "runAsNonRoot": False}


def as_root_if_needed(options: PodOptions, image: str | None) -> PodOptions:
    """Return the options with the user root for the engine's container where its image needs it."""
    if not _needs_root(options, image):
        return options
    security = _ROOT | (options.container_security_context or {})
    return options.model_copy(update={"container_security_context": security})


def explain_root(options: PodOptions, image: str | None, level: str) -> HoneError | None:
    """Return why the image can't start at this Pod Security level; None where it can, or where that is not known."""
    if level != RESTRICTED or not _needs_root(options, image):
        return None
    message = (
        f"Image {image} starts only as root, which needs level {BASELINE}; pods of Hone may have level {level} (the "
        f"chart's value {VALUE})"
    )
    remedy = (
        f"Set spec.engine: vllm, or let whoever runs Hone set {VALUE}: {BASELINE}. Where this image was changed so "
        "that it works as another user, set spec.pod.securityContext.runAsUser to that user."
    )
    return HoneError(INVALID_SPEC, message, remedy=remedy)


def _needs_root(options: PodOptions, image: str | None) -> bool:
    """Whether the image needs root, and the user has not named another user."""
    names_user = any(
        "runAsUser" in (context or {}) for context in (options.security_context, options.container_security_context)
    )
    return bool(image and _NEED_ROOT.search(image)) and not names_user
