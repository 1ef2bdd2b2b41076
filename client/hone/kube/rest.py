"""Call the API server by path with the user's own rights, with answers as plain JSON. Every call has a timeout."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from hone.kube.cluster import TIMEOUT, Cluster, Object, describe_broken

# Objects in one answer: a node has up to 50 KiB.
PAGE = 250


def call_api(
    cluster: Cluster,
    path: str,
    query: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    body: Object | str | None = None,
    content: str = "application/json",
    timeout: tuple[float, float] | None = None,
) -> Any:
    """Return the answer to one call as JSON. `content`: the type of the body. Raises ApiException and HTTPError."""
    api: Any = cluster.api
    headers = {"Accept": "application/json", "Content-Type": content}
    pairs = list((query or {}).items())
    request = api.param_serialize(
        method, path, query_params=pairs, header_params=headers, body=body, auth_settings=["BearerToken"]
    )
    response = api.call_api(*request, _request_timeout=timeout or TIMEOUT)
    data = response.read()
    if not 200 <= response.status <= 299:
        error = ApiException(status=response.status, reason=response.reason)
        error.body = data.decode(errors="replace")
        raise error
    with suppress(ValueError):
        found = json.loads(data)
        if isinstance(found, dict):
            return found
    raise HTTPError(f"{path} was not answered with an object in JSON: something else than Kubernetes answers there")


def list_objects(cluster: Cluster, path: str, query: Mapping[str, str] | None = None) -> Iterator[Object]:
    """Yield the objects of a list page by page. Raises ApiException and HTTPError."""
    more = {**(query or {}), "limit": str(PAGE)}
    while True:
        page = call_api(cluster, path, more)
        yield from page.get("items") or []
        following = (page.get("metadata") or {}).get("continue")
        if not following:
            return
        if following == more.get("continue"):
            raise HTTPError(f"{path} was answered with the same page again: something else than Kubernetes answers")
        more["continue"] = following


def describe_error(error: ApiException | HTTPError) -> str:
    """Return why a call failed, in one sentence."""
    if isinstance(error, HTTPError):
        return describe_broken(error)
    try:
        message = str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        message = str(error.reason)
    return message.rstrip(".")


def open_stream(cluster: Cluster, path: str, query: Mapping[str, str], seconds: float) -> Any:
    """Return the response to a GET whose body is read in pieces, at most `seconds` apart.

    Raises ApiException and HTTPError.
    """
    api: Any = cluster.api
    request = api.param_serialize(
        "GET", path, query_params=list(query.items()), header_params={"Accept": "*/*"}, auth_settings=["BearerToken"]
    )
    response = api.call_api(*request, _request_timeout=(TIMEOUT[0], seconds)).response
    if not 200 <= response.status <= 299:
        error = ApiException(status=response.status, reason=response.reason)
        error.body = response.data.decode(errors="replace")
        raise error
    return response
