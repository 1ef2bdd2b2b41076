"""Make the destinations of a push: those of spec.output.push in a pod, or the addresses of `hone push` on a laptop.

Input are destinations with the run's Secrets, or addresses with the environment's credentials; output is a
`Destination` for each, which `main` calls.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hone_api.finetunejobs.push import HubRepository, PushDestination
from hone_api.io.terminal import print_line
from hone_api.layout import REGISTRY_SCHEME
from hone_api.reasons import INVALID_SPEC, HoneError
from pydantic import ValidationError

from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.push.artifact import LocalArtifact
from hone_trainer.push.hub import HubPush
from hone_trainer.push.oci import push_to_registry
from hone_trainer.push.s3 import S3Push
from hone_trainer.push.s3_store import S3Destination
from hone_trainer.remote.locations import Location

HUB = "hf://"
_SENDABLE = re.compile("[!-~]+")


@dataclass(frozen=True)
class Destination:
    """One place. `push` makes it the artifact and returns the revision there, if it has revisions. Raises HoneError."""

    address: str
    push: Callable[[LocalArtifact], str | None]


def make_destination(given: PushDestination, index: int, inputs: JobInputs) -> Destination:
    """Return a destination of spec.output.push. A Secret that lacks a key is a failure of its push."""
    field = f"spec.output.push[{index}]"

    def push_to_hub(artifact: LocalArtifact) -> str:
        hub = given.hub
        assert hub
        token_field = f"{field}.hub.tokenSecret" if hub.token_secret else "spec.tokenSecret"
        where, token = f"{field}.hub.repo is {hub.repo}", _read_token(hub, field, inputs)
        return HubPush(hub.repo, hub.private, token, where, token_field, print_line).push(artifact)

    def push_to_location(artifact: LocalArtifact) -> str | None:
        bundle = given.ca_bundle.config_map if given.ca_bundle else None
        location = Location(
            "push",
            given.address,
            given.endpoint,
            given.region,
            inputs.read_secret_values(given.secret.name) if given.secret else None,
            inputs.find_config_map_file(bundle, f"{field}.caBundle.configMap", INVALID_SPEC) if bundle else None,
            field,
        )
        return _push_to(location, artifact)

    return Destination(given.address, push_to_hub if given.hub else push_to_location)


def parse_address(address: str, *, is_private: bool) -> Destination:
    """Return the destination at an address, with the credentials of the environment. Raises HoneError InvalidSpec."""
    try:
        if address.startswith(HUB):
            hub = HubRepository(repo=address.removeprefix(HUB), private=is_private)
            token_field = "the variable HF_TOKEN, or log in with `hf auth login`"
            where = f"The destination is {address}"
            return Destination(address, HubPush(hub.repo, hub.private, None, where, token_field, print_line).push)
        if address.startswith(REGISTRY_SCHEME):
            given = PushDestination(oci=address.removeprefix(REGISTRY_SCHEME))
        else:
            given = PushDestination(uri=address)
    except ValidationError:
        found = f"The destination is {address}, which is no address to push to"
        remedy = "Write s3://BUCKET/FOLDER, hf://OWNER/NAME or oci://REGISTRY/REPOSITORY:TAG."
        raise HoneError(INVALID_SPEC, found, remedy=remedy) from None
    certificates = os.environ.get("SSL_CERT_FILE")
    location = Location("push", given.address, ca_file=Path(certificates) if certificates else None)
    return Destination(address, partial(_push_to, location))


def _push_to(location: Location, artifact: LocalArtifact) -> str | None:
    """Push to a registry, and return the digest there, or to a bucket."""
    if location.uri.startswith(REGISTRY_SCHEME):
        return push_to_registry(location, artifact, print_line)
    S3Push(location, S3Destination(location), print_line).push(artifact)
    return None


def _read_token(hub: HubRepository, field: str, inputs: JobInputs) -> str | None:
    """Return the token of the destination's own Secret; None where the environment's is meant."""
    secret = hub.token_secret
    if secret is None or (values := inputs.read_secret_values(secret.name)) is None:
        return None
    token = values.get(secret.key, "").strip()
    if not _SENDABLE.fullmatch(token):  # the HTTP client would quote it in its error
        problem = f"key {secret.key}, which is no token" if token else f"no key {secret.key}"
        raise HoneError(
            INVALID_SPEC,
            f"{field}.hub.tokenSecret is {secret.name}, and this Secret has {problem}",
            remedy="Write the token into this key, without quotes, line feeds and the like.",
        )
    return token
