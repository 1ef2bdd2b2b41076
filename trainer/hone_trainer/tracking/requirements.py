"""Refuse, before anything is downloaded or trained, what a tracker lacks: its package, or its credentials."""

import os
import re
from importlib.machinery import PathFinder

from hone_api.finetunejobs.tracking import SECRET_KEYS, TrackingOptions
from hone_api.reasons import INVALID_SPEC, HoneError

from hone_trainer.inputs.manifest import JobInputs

# What goes into a header as it is. User and password are encoded first.
_IN_HEADERS = ("MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY")
_SENDABLE = re.compile("[!-~]([ -~]*[!-~])?")


def refuse_missing_packages(tracking: TrackingOptions | None) -> None:
    """Raise HoneError InvalidSpec for a tracker whose package is not installed here."""
    for name in tracking.names if tracking else []:
        if PathFinder.find_spec(name) is None:  # training hides wandb from TRL
            raise HoneError(
                INVALID_SPEC,
                f"spec.tracking.{name} is set, and the Python package {name} is not installed where the trainer runs",
                remedy=f"Install {name} (in a cluster: in the runtime image), or remove spec.tracking.{name}.",
            )


def read_credentials(inputs: JobInputs) -> dict[str, dict[str, str]]:
    """Return the variables with the credentials of each tracker, from its Secret, or where it is not given from the
    environment.

    Raises HoneError InvalidSpec for a Secret that is not given or has none of the keys, and for a token that can't be
    sent.
    """
    found: dict[str, dict[str, str]] = {}
    for name, secret in (inputs.job.spec.tracking.secrets if inputs.job.spec.tracking else {}).items():
        field, values = f"spec.tracking.{name}.secret.name is {secret}", inputs.read_secret_values(secret)
        if values is None:
            values = dict(os.environ)
            field = f"{field}, and that Secret is not given; the environment"
        else:
            field = f"{field}, which"
        found[name] = {key: values[key].strip() for key in SECRET_KEYS[name] if values.get(key, "").strip()}
        if not found[name]:
            keys = ", ".join(SECRET_KEYS[name])
            raise HoneError(
                INVALID_SPEC, f"{field} has none of {keys}", remedy="Add it, or put the Secret into the same file."
            )
        for key in _IN_HEADERS:
            # The tracker's library would quote it in its error, and so in the status.
            if not _SENDABLE.fullmatch(found[name].get(key, "-")):
                raise HoneError(
                    INVALID_SPEC,
                    f"{field} has a line feed or another character in {key} that no token has",
                    remedy="Write it again without quotes, line feeds and the like.",
                )
    return found
