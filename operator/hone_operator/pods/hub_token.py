"""The hub token among a container's variables: only the container that downloads gets it.

In: variables, and the Secret that the spec names. Out: variables with the token, or without any. Used by
finetunejob/jobs.py and engines/hub_download.py.
"""

from hone_api.common import SecretKey
from hone_api.pods.pod_options import PodOptions

from hone_operator.objects.resources import Object

# The variables that huggingface_hub reads a token from.
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def add_token(variables: list[Object], secret: SecretKey | None) -> list[Object]:
    """Return the variables with the token of the Secret in place of any other; unchanged where no Secret is named."""
    if not secret:
        return variables
    others = [variable for variable in variables if variable["name"] not in TOKEN_VARIABLES]
    reference = {"name": secret.name, "key": secret.key}
    return [*others, {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}}]


def go_offline(variables: list[Object], options: PodOptions) -> list[Object]:
    """Return the variables of a container that works without the hub: none of them is a token of the user's."""
    others = [variable for variable in variables if variable["name"] not in (*TOKEN_VARIABLES, "HF_HUB_OFFLINE")]
    found = [*others, {"name": "HF_HUB_OFFLINE", "value": "1"}]
    if options.env_from:  # a key of these may be a token as well; env wins
        found += [{"name": name, "value": ""} for name in TOKEN_VARIABLES]
    return found
