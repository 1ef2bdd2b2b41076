"""Keep secrets out of the report: out of the steps' environment, and out of their output."""

import re
from collections.abc import Mapping
from typing import Any

SECRET_NAMES = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|AUTH|COOKIE|CONNECTION_?STRING|CONN_?STR|API_?KEY|ACCESS_?KEY|"
    r"(?:KEY|(?:^|_)(?:PASS|PWD|PAT|DSN|SAS|SIG))(?:_|\d*$)",
    re.IGNORECASE,
)
# Names that look so, and hold no secret.
NO_SECRETS = ("TOKENIZERS_PARALLELISM", "PWD", "OLDPWD")
# Shorter values are not replaced: they occur in too much other text.
SHORTEST = 6
IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{8,}|gh[a-z]_[A-Za-z0-9]{8,}|github_pat_\w{8,}|glpat-[\w-]{8,}|"
    r"wandb_v\d_\w{8,}|(?:AKIA|ASIA)[A-Z0-9]{16})|(?<=Bearer )\S+|"
    r"(?<=[?&]X-Amz-Signature=)\w+|(?<=[?&]sig=)[\w%]+|(?<=[?&]X-Goog-Signature=)\w+"
)


def find_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may hold a secret, by their names."""
    return {name: value for name, value in environ.items() if SECRET_NAMES.search(name) and name not in NO_SECRETS}


def redact(text: str, environ: Mapping[str, str]) -> str:
    """Return the text without the secrets of the environment, without names in addresses, and with ~ for the home."""
    for value in sorted(find_secrets(environ).values(), key=len, reverse=True):
        if len(value) >= SHORTEST:
            text = text.replace(value, "***")
    text = KNOWN.sub("***", IN_URL.sub("***@", text))
    home = environ.get("HOME", "")
    return text if len(home) < 2 else re.sub(rf"{re.escape(home.rstrip('/'))}(?=[/\s'\"]|$)", "~", text)


def redact_values(value: Any, environ: Mapping[str, str]) -> Any:
    """Return JSON's types with all of their strings redacted."""
    if isinstance(value, str):
        return redact(value, environ)
    if isinstance(value, dict):
        return {name: redact_values(item, environ) for name, item in value.items()}
    return [redact_values(item, environ) for item in value] if isinstance(value, list) else value
