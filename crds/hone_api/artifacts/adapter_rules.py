"""Which adapters vLLM, SGLang and TGI can load, and which commit of a base model an adapter fits. Pure.

In: an adapter's settings, from a FineTuneJob (operator and trainer) or from adapter_config.json (server). Out: what the
engines refuse. Each package writes its own message, because each shows the setting under the name that its user knows.
"""

import re
from collections.abc import Sequence

# The highest value of vLLM's --max-lora-rank.
MAX_LORA_RANK = 512

_COMMIT = re.compile("[0-9a-f]{40}")


def list_refused_settings(
    *, use_dora: bool | None, bias: str, peft_type: str | None = "LORA", modules_to_save: Sequence[str] | None = None
) -> list[str]:
    """Return the settings that all versions of these engines refuse, by their names in adapter_config.json."""
    refused = {
        "peft_type": peft_type != "LORA",
        "use_dora": bool(use_dora),
        "modules_to_save": bool(modules_to_save),
        "bias": bias != "none",
    }
    return [name for name, is_refused in refused.items() if is_refused]


def is_commit(revision: str | None) -> bool:
    """Return whether the revision is a commit. Only the hub knows the commit of a branch or tag."""
    return _COMMIT.fullmatch(revision or "") is not None


def fits_revision(trained: str | None, served: str | None) -> bool:
    """Return whether an adapter that was trained on one revision of its base model may be served on another.

    True unless both are known and differ.
    """
    return not trained or not is_commit(served) or trained == served
