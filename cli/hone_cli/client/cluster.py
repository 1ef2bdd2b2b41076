"""The cluster as kubectl sees it: kubeconfig, context and namespace, and what its refusals mean."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import kubernetes.client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from hone_cli.ui.output import Problem

GROUP, VERSION = "hone.dev", "v1alpha1"
# Seconds to connect, and between two reads.
TIMEOUT = (5, 30)

Object = dict[str, Any]
kubeconfig: Any = importlib.import_module("kubernetes.config")  # untyped


@dataclass(frozen=True)
class Cluster:
    """Access to one cluster, and the chosen namespace."""

    api: kubernetes.client.ApiClient
    namespace: str


def connect(context: str | None, namespace: str | None) -> Cluster:
    """Read the kubeconfig as kubectl does. Raises Problem without a usable one."""
    try:
        api = kubeconfig.new_client_from_config(context=context)
        contexts, current = kubeconfig.list_kube_config_contexts()
    except kubeconfig.ConfigException as error:
        raise Problem(
            f"no cluster: {error}", "Set KUBECONFIG, or choose a context that `kubectl config get-contexts` lists."
        ) from error
    chosen = next((one for one in contexts if one["name"] == context), current)
    return Cluster(api, namespace or chosen["context"].get("namespace") or "default")


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn errors of the API server, or of the connection to it, into a Problem that names `what` was requested."""
    try:
        yield
    except ApiException as error:
        raise explain_error(what, error) from error
    except HTTPError as error:
        raise Problem(
            f"the cluster can't be reached: {error}", "Check the kubeconfig's context, network and proxy."
        ) from error


def explain_error(what: str, error: ApiException) -> Problem:
    """Return the Problem for an answer of the API server."""
    said = _read_status_message(error)
    if error.status == 404 and said is None:
        return Problem(
            f"this cluster does not know objects of {GROUP}/{VERSION}", "Install Hone there: see docs/quickstart.md"
        )
    if error.status == 404:
        return Problem(f"{what} not found", "Check name, namespace (-n) and context (--context).")
    if error.status in (401, 403):
        return Problem(f"{what}: {said or error.reason}", "Ask for the right, or use another context (--context).")
    return Problem(f"{what}: {said or error.reason}", "Try again; if it stays, look at the cluster's API server.")


def _read_status_message(error: ApiException) -> str | None:
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return None
