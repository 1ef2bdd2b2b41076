"""The credentials of a source: from its Secret, or for S3 from the environment.

Values are checked before they are sent: the HTTP client would quote an unusable one in its error, and so in the log and
in the status. A line feed at the end, as `echo` and editors add it, belongs to no credential and is left out.
"""

import configparser
import os
import re
from base64 import b64encode

from hone_api.reasons import INVALID_SPEC, STORE_UNAUTHORIZED, HoneError
from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    AWSConfigProvider,
    ChainedProvider,
    EnvAWSProvider,
    IamAwsProvider,
    Provider,
    StaticProvider,
)
from urllib3.exceptions import HTTPError

from hone_trainer.remote.locations import Location

ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
# Set by EKS in pods whose service account has a role.
_IDENTITY = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
_SENDABLE = re.compile("[!-~]([ -~]*[!-~])?")


def find_provider(location: Location) -> Provider | None:
    """Return the Secret's credentials for S3, else those of the environment; None where there are none.

    Raises HoneError InvalidSpec for keys that are missing or can't be sent, StoreUnauthorized where the environment's
    can't be read.
    """
    if location.secret is None:
        return _find_in_environment(location)
    keys = {name: location.secret.get(name, "").strip() for name in (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN)}
    if lacking := [name for name in (ACCESS_KEY, SECRET_KEY) if not keys[name]]:
        raise HoneError(
            INVALID_SPEC,
            f"{location.where}, and its Secret has no {' and no '.join(lacking)}",
            remedy=f"Give it the keys {ACCESS_KEY} and {SECRET_KEY}.",
        )
    for name, value in keys.items():
        _require_sendable(location, f"key {name} of its Secret", value)
    return StaticProvider(keys[ACCESS_KEY], keys[SECRET_KEY], keys[SESSION_TOKEN] or None)


def make_authorization(location: Location) -> dict[str, str]:
    """Return the header with the Secret's credentials for HTTPS. Raises HoneError InvalidSpec for unusable keys."""
    if location.secret is None:
        return {}
    if token := location.secret.get("token", "").strip():
        _require_sendable(location, "key token of its Secret", token)
        return {"Authorization": f"Bearer {token}"}
    if "username" in location.secret and "password" in location.secret:
        pair = ":".join(location.secret[name].rstrip("\r\n") for name in ("username", "password"))
        return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
    raise HoneError(
        INVALID_SPEC,
        f"{location.where}, and its Secret has neither token nor username and password",
        remedy="Give it the key token, or the keys username and password.",
    )


def _find_in_environment(location: Location) -> Provider | None:
    providers: list[Provider] = [EnvAWSProvider(), AWSConfigProvider(profile=os.environ.get("AWS_PROFILE"))]
    identity = next((name for name in _IDENTITY if name in os.environ), None)
    if identity:
        providers.append(IamAwsProvider())
    chain = ChainedProvider(providers)
    try:
        found: Credentials = chain.retrieve()
    except configparser.Error as error:  # its text has lines of the file
        raise _make_unreadable(location, type(error).__name__) from None
    except (HTTPError, OSError) as error:
        raise _make_unreadable(location, " ".join(str(error).split())) from error
    except ValueError as error:  # no provider has any
        if identity:  # a pod with a role must not go on without it, as for a public bucket
            raise _make_unreadable(location, f"{identity} is set, and the identity was refused") from error
        return None
    for value in (found.access_key, found.secret_key, found.session_token or ""):
        _require_sendable(location, "one of the environment's AWS credentials", value)
    return chain


def _make_unreadable(location: Location, why: str) -> HoneError:
    return HoneError(
        STORE_UNAUTHORIZED,
        f"{location.where}, and the credentials of the environment can't be read: {why}",
        remedy=f"Correct the variables AWS_… and the files that they name, or set {location.name_field('secret')}.",
    )


def _require_sendable(location: Location, what: str, value: str) -> None:
    """Raise HoneError InvalidSpec, which does not contain the value, unless it fits into a header."""
    if value and not _SENDABLE.fullmatch(value):
        raise HoneError(
            INVALID_SPEC,
            f"{location.where}, and {what} has a line feed or another character that no credential has",
            remedy="Write it again without quotes, line feeds and the like.",
        )
