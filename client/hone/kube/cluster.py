"""The cluster as kubectl sees it: kubeconfig, context and namespace, and what its refusals mean."""

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import kubernetes.client
import yaml
from kubernetes.client.exceptions import ApiException
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from hone.errors import ClientError
from hone.objects.names import require_name

GROUP, VERSION = "hone.dev", "v1alpha1"
# Seconds to connect, and between two reads.
TIMEOUT = (5, 30)

Object = dict[str, Any]
kubeconfig: Any = importlib.import_module("kubernetes.config")  # untyped


@dataclass(frozen=True)
class Cluster:
    """Access to one cluster, and the chosen namespace. `context` None: the kubeconfig's current one."""

    api: kubernetes.client.ApiClient
    namespace: str
    context: str | None = None

    @property
    def flags(self) -> str:
        """The options with which `hone` and `kubectl` find the same objects."""
        context = f" --context {shlex.quote(self.context)}" if self.context else ""
        return f"--namespace {shlex.quote(self.namespace)}{context}"


def connect(context: str | None, namespace: str | None) -> Cluster:
    """Read the kubeconfig as kubectl does. Raises ClientError without a usable one."""
    settings: Any = kubernetes.client.Configuration()
    # The client would repeat a call three times: a silent server would be noticed after two minutes.
    settings.retries = Retry(0)
    try:
        api = kubeconfig.new_client_from_config(context=context, client_configuration=settings)
        usual = _read_namespace(context)
        credentials = [str(each["value"]) for each in settings.auth_settings().values()]
    except kubeconfig.ConfigException as error:
        raise ClientError(
            f"no cluster: {error}", "Set KUBECONFIG, or choose a context that `kubectl config get-contexts` lists."
        ) from error
    except (yaml.YAMLError, TypeError, AttributeError, KeyError, ValueError) as error:
        what = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else "it has another form"
        raise ClientError(
            f"the kubeconfig can't be read: {what}", "Correct it: `kubectl config view` reads it, too."
        ) from (error)
    if not all(map(re.compile("[ -~]*").fullmatch, credentials)):  # the client would print them
        raise ClientError(
            "the kubeconfig's token has a line feed or another character that no token has", "Correct it."
        )
    require_name(
        "--namespace", namespace or usual, "Give the name of a namespace: `kubectl get namespaces` lists them."
    )
    return Cluster(api, namespace or usual, context)


def _read_namespace(context: str | None) -> str:
    """Return the namespace of a context. The kubeconfig needs no current context where one is named."""
    config = kubeconfig.kube_config.KubeConfigMerger(kubeconfig.kube_config.KUBE_CONFIG_DEFAULT_LOCATION).config
    name = context or config.safe_get("current-context")
    chosen = config["contexts"].get_with_name(name)["context"]
    return str(chosen.safe_get("namespace") or "default")


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn errors of the API server, or of the connection to it, into a ClientError that names `what` was requested."""
    try:
        yield
    except ApiException as error:
        raise explain_error(what, error) from error
    except HTTPError as error:
        raise ClientError(
            f"the cluster can't be reached: {describe_broken(error)}",
            "Check the kubeconfig's context, network and proxy.",
        ) from error


def explain_error(what: str, error: ApiException) -> ClientError:
    """Return the ClientError for an answer of the API server."""
    status_message = _read_status_message(error)
    if not error.status:  # the client's own error, of TLS
        found = " ".join(str(error.reason).split())
        return ClientError(f"the cluster can't be reached: {found}", "Check the kubeconfig's server and certificates.")
    if error.status == 404 and status_message is None:
        return ClientError(
            f"this cluster does not know objects of {GROUP}/{VERSION}", "Install Hone there: see docs/quickstart.md"
        )
    if error.status == 404:
        return ClientError(f"{what} not found", "Check name, namespace (-n) and context (--context).")
    return ClientError(f"{what}: {status_message or error.reason}", _choose_remedy(error.status, status_message or ""))


def _choose_remedy(status: int, said: str) -> str:
    """Return what to do about a refused request. Only a missing right has `cannot` in its message."""
    if status == 401:
        return "Log in again: the credentials of the kubeconfig are wrong or have expired. Or use another --context."
    if status == 403 and "exceeded quota" in said:
        return "Free some of the quota, or have it raised: `kubectl describe quota` shows it."
    if status == 403 and " cannot " not in said and said:
        return "A rule of the cluster refuses it: change what the message names, or ask the administrators."
    if status == 403:
        return "Ask for the right, or use another context (--context)."
    return "Try again; if it stays, look at the cluster's API server."


def describe_broken(error: HTTPError) -> str:
    """Return why a connection failed, in one line."""
    return " ".join(str(getattr(error, "reason", None) or error).split())


def _read_status_message(error: ApiException) -> str | None:
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return None
