"""Logins of registries: from the Secret or docker's configuration, and the tokens that registries exchange them for.

A registry answers a request without a login with a challenge: Basic, or Bearer with the address of a server that gives
tokens for a repository. Login and token only go to the registry and to that server, and appear in no message.
"""

import binascii
import json
import os
import re
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import parse_http_list, parse_keqv_list

import urllib3
from hone_api.io.terminal import print_line
from hone_api.reasons import INVALID_SPEC, STORE_UNAUTHORIZED, HoneError

from hone_trainer.remote.connections import is_transient, make_refusal, read_wait, translate_failures
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import TransientError
from hone_trainer.remote.refusals import read_answer

DOCKER_CONFIG_KEY = ".dockerconfigjson"
DOCKER_HUB = "docker.io"
# Docker Hub's name in configurations, in addition to its host.
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_MOST_TOKEN_BYTES = 2**20
_SENDABLE = re.compile("[!-~]+")

Request = Callable[[str, Mapping[str, str]], urllib3.BaseHTTPResponse]


def find_login(location: Location, host: str, repository: str) -> str | None:
    """Return `user:password` of the Secret, else of docker's configuration; None where neither has one for the host.

    A key may name a part of the host's repositories, and have wildcards, as in Kubernetes' image pull secrets.

    Raises HoneError InvalidSpec for a Secret that has no login or can't be read.
    """
    if location.secret is None:
        file = _find_docker_config()
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError):
            return None
        return _find_in_config(location, text, host, repository, f"the file {file}")
    if "username" in location.secret and "password" in location.secret:
        return ":".join(location.secret[name].rstrip("\r\n") for name in ("username", "password"))
    if config := location.secret.get(DOCKER_CONFIG_KEY):
        what = f"key {DOCKER_CONFIG_KEY} of its Secret"
        if login := _find_in_config(location, config, host, repository, what):
            return login
        found = f"{location.where}, and key {DOCKER_CONFIG_KEY} of its Secret has no user and password for {host}"
        raise HoneError(
            INVALID_SPEC, found, remedy=f"Make it with: kubectl create secret docker-registry --docker-server={host}."
        )
    raise HoneError(
        INVALID_SPEC,
        f"{location.where}, and its Secret has neither {DOCKER_CONFIG_KEY} nor username and password",
        remedy="Make it with: kubectl create secret docker-registry, or give it the keys username and password.",
    )


def _find_docker_config() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def _find_in_config(location: Location, text: str, host: str, repository: str, what: str) -> str | None:
    """Return the login of a repository from docker's configuration."""
    hosts = [host, _DOCKER_HUB_KEY, "index.docker.io", "registry-1.docker.io"] if host == DOCKER_HUB else [host]
    try:
        entries = json.loads(text).get("auths") or {}
        # The longest key is the most exact one.
        keys = sorted((key for key in entries if entries[key] and _is_key_of(key, hosts, repository)), key=len)
        entry = entries[keys[-1]] if keys else {}
        if entry.get("auth"):
            return b64decode(entry["auth"], validate=True).decode().rstrip("\r\n")
        return f"{entry['username']}:{entry['password']}" if entry.get("username") else None
    except (ValueError, TypeError, AttributeError, KeyError, binascii.Error):  # the text has the password
        raise HoneError(
            INVALID_SPEC,
            f"{location.where}, and {what} is no configuration of docker",
            remedy="Write it as `docker login` or `kubectl create secret docker-registry` does.",
        ) from None


def _is_key_of(key: str, hosts: Sequence[str], repository: str) -> bool:
    """Return whether a key of `auths` is for a repository of a registry, which has these hosts."""
    if key in hosts:
        return True
    host, _, path = key.removeprefix("https://").removeprefix("http://").rstrip("/").partition("/")
    path = re.sub("^v[12](/|$)", "", path)
    labels = host.split(".")
    for own in hosts:
        parts = own.split(".")
        is_host = len(labels) == len(parts) and all(map(fnmatchcase, parts, labels))
        if is_host and (not path or f"{repository}/".startswith(f"{path}/")):
            return True
    return False


def find_helper(host: str) -> str | None:
    """Return the credential helper that docker's configuration names for a host, and that Hone does not start."""
    try:
        document = json.loads(_find_docker_config().read_text())
        found = (document.get("credHelpers") or {}).get(host) or document.get("credsStore")
    except (OSError, ValueError, AttributeError):
        return None
    return f"docker-credential-{found}" if found else None


class Authorization:
    """Answers the challenges of one registry for one repository. Used from several threads."""

    def __init__(self, location: Location, host: str, scope: str, request: Request) -> None:
        self._location, self._scope, self._request = location, scope, request
        self._login = find_login(location, host, scope.split(":")[1])
        self._helper = None if self._login or location.secret else find_helper(host)
        self._header: str | None = None
        self._lock = threading.Lock()

    @property
    def is_signed(self) -> bool:
        """Whether there is a login."""
        return self._login is not None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may have, as a server could quote it: the password, and what was sent of it."""
        sent = [header.partition(" ")[2] for header in (self._header or "", self._make_basic())]
        return (*sent, (self._login or "").partition(":")[2])

    @property
    def header(self) -> str | None:
        """What the registry has accepted last; None before its first challenge."""
        return self._header

    def answer(self, challenges: list[str], used: str | None, address: str) -> bool:
        """Prepare the answer to challenges; return whether there is one that was not tried yet.

        `used` is the header of the refused request, and `address` the URL of the registry.
        Raises HoneError StoreUnauthorized, StoreUnreachable, TransientError.
        """
        with self._lock:
            if self._header != used:  # another thread has just done it
                return True
            if self._helper:
                print_line(
                    f"warning: {self._helper} has the logins of docker, and Hone does not start it: no login is sent"
                )
                self._helper = None
            found = dict(_parse_challenge(each) for each in challenges)
            if "bearer" in found:
                self._header = f"Bearer {self._fetch_token(found['bearer'], address)}"
                return self._header != used
            if "basic" in found and self._login is not None:
                self._header = self._make_basic()
                return self._header != used
            return False

    def _make_basic(self) -> str:
        return f"Basic {b64encode((self._login or '').encode()).decode()}"

    def _fetch_token(self, challenge: Mapping[str, str], address: str) -> str:
        realm = challenge.get("realm", "")
        try:
            target, own = urlsplit(realm), urlsplit(address)
            is_usable = bool(target.hostname) and target.scheme in ("https", own.scheme)
        except ValueError:
            is_usable = False
        if not is_usable:
            found = f"{self._location.where}, and the registry names no https:// address that gives tokens"
            raise HoneError(STORE_UNAUTHORIZED, found)
        query = {"service": challenge.get("service", ""), "scope": self._scope}
        separator = "&" if target.query else "?"
        headers = {"Authorization": self._make_basic()} if self.is_signed else {}
        with translate_failures(self._location):
            response = self._request(f"{realm}{separator}{urlencode(query)}", headers)
            try:
                content = response.read(_MOST_TOKEN_BYTES)
            finally:
                response.close()
        if response.status != 200:
            answer = f"{target.hostname} gives no token: {read_answer(response.status, content, self.secrets)}"
            if is_transient(response.status):
                raise TransientError(answer, read_wait(response.headers))
            raise make_refusal(self._location, answer, is_signed=self.is_signed)
        return self._read_token(content, str(target.hostname))

    def _read_token(self, content: bytes, host: str) -> str:
        try:
            answer: dict[str, Any] = json.loads(content)
            token = str(answer.get("token") or answer["access_token"])
        except (ValueError, KeyError, TypeError, AttributeError):
            token = ""
        if not _SENDABLE.fullmatch(token):
            raise HoneError(STORE_UNAUTHORIZED, f"{self._location.where}, and {host} answers without a token")
        return token


def _parse_challenge(text: str) -> tuple[str, dict[str, str]]:
    """Return scheme and parameters of a challenge."""
    scheme, _, parameters = text.strip().partition(" ")
    named = [part for part in parse_http_list(parameters) if "=" in part]
    return scheme.lower(), {name.strip().lower(): value for name, value in parse_keqv_list(named).items()}
