"""The Kubernetes client: one pooled HTTP session, JSON in, JSON out, a time limit on every request."""

import json
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from kubernetes.aio import client, config
from kubernetes.aio.client.rest import RESTClientObject

from hone_operator.kube.list_pages import Listing, ListPage, is_object, is_version
from hone_operator.objects import bounded_json, texts
from hone_operator.objects.resources import FINETUNEJOBS, INFERENCESERVICES, PODS, Object, Resource
from hone_operator.observability.metrics import Metrics

logger = logging.getLogger(__name__)

FIELD_MANAGER = "hone"
TIMEOUT_SECONDS, CONNECT_SECONDS = 30.0, 5.0
# Kinds of which one object is rarely read: a list of one name needs only the right that the watch needs as well.
READ_BY_LISTS = (FINETUNEJOBS, INFERENCESERVICES, PODS)
# For a write. The API server itself ends a request after 60 seconds, with an answer (--request-timeout).
WRITE_SECONDS = 65.0
# Each watch occupies one of them.
CONNECTIONS = 64
# Objects and bytes of one page of a list. A page with more bytes is requested again with fewer objects.
PAGE, LARGEST_PAGE = 100, 4 << 20
# Bytes of any other answer, and of one event of a watch. etcd keeps objects of at most 1.5 MiB.
LARGEST_ANSWER = 16 << 20
# How long a watch lasts: random between these, so that not all end together.
WATCH_SECONDS = (300, 600)
# A watch without any data for so long is dead: the API server sends a bookmark every minute.
SILENCE_SECONDS = 90.0
# The API server refuses unknown fields, instead of dropping them with a warning.
STRICT = {"fieldValidation": "Strict"}
WARNINGS_KEPT = 1000
# The most that is granted to a Retry-After of the API server, or of a proxy that answers in its place.
LONGEST_PAUSE_SECONDS = 600.0

_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder each time


class ApiError(Exception):
    """The API server refused a request: `status` is the HTTP status, `message` the server's message.

    `retry_after`: the seconds of its Retry-After header.
    """

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        # The server's objection may come after megabytes that a user wrote, so it is searched before the cut.
        self._names_uid = "uid mismatch" in message if status == 409 else "metadata.uid" in message
        self.status = status
        self.message = texts.truncate_text(message)
        self.retry_after = retry_after
        super().__init__(f"{status}: {self.message}")

    @property
    def is_refusal(self) -> bool:
        """Whether the same request would be refused again."""
        return self.status in (400, 403, 404, 405, 413, 422)

    @property
    def is_of_spec(self) -> bool:
        """Whether the object itself is refused: not for a quota, which still counts what is to be removed.

        Nor by a webhook without support for dry runs, which answers 400.
        """
        return self.status in (403, 413, 422) and "quota" not in self.message and not self.is_farewell

    @property
    def is_of_another(self) -> bool:
        """Whether an object with another uid has the name now, or none has."""
        return self.status in (409, 422) and self._names_uid

    @property
    def is_farewell(self) -> bool:
        """Whether the namespace is being deleted, and the object with it."""
        return self.status == 403 and "it is being terminated" in self.message


class UnusableAnswer(ApiError):
    """Something else answered in place of the API server, such as a load balancer with a page of HTML."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(status, f"the answer is not of the Kubernetes API: {why}")


class _TooLarge(Exception):
    """An answer has more bytes than are read at once."""


class NotLeading(Exception):
    """Another replica may be the leader, so this one must not write."""


class Api:
    """One session. Create it inside the running event loop.

    `fence` returns for how many seconds a write that begins now may last; 0 refuses it.
    """

    def __init__(
        self, configuration: client.Configuration, metrics: Metrics, fence: Callable[[], float] | None = None
    ) -> None:
        self._configuration = configuration
        self._metrics = metrics
        self._fence = fence
        ssl = RESTClientObject(configuration).ssl_context
        connector = aiohttp.TCPConnector(ssl=ssl, limit=CONNECTIONS)
        self._session = aiohttp.ClientSession(configuration.host, connector=connector)
        self._warned: dict[str, None] = {}

    @classmethod
    async def connect(cls, metrics: Metrics, fence: Callable[[], float] | None = None) -> "Api":
        """Return a client with the pod's ServiceAccount in a cluster, else with the kubeconfig."""
        configuration = client.Configuration()
        if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        return cls(configuration, metrics, fence)

    async def close(self) -> None:
        await self._session.close()

    async def serves(self, *resources: Resource) -> bool:
        """Return whether the API server serves all these kinds of one API version."""
        try:
            known = await self._request("GET", "", f"/apis/{resources[0].api_version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        try:
            names = {found["name"] for found in known["resources"]}
        except (KeyError, TypeError) as error:
            raise UnusableAnswer(200, f"{error!r} in the list of kinds") from error
        return {resource.plural for resource in resources} <= names

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Return the object, or None where there is none."""
        if resource in READ_BY_LISTS:
            found = await self.list(resource, namespace, fieldSelector=f"metadata.name={name}")
            return found[0] if found else None
        try:
            return await self._call("GET", resource.plural, resource.build_path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, resource: Resource, body: Object) -> Object:
        """Create an object. Raises ApiError 409 when there is one of this name."""
        path, params = resource.build_path(body["metadata"]["namespace"]), {"fieldManager": FIELD_MANAGER, **STRICT}
        return await self._call("POST", resource.plural, path, body, params=params)

    async def try_create(self, resource: Resource, body: Object) -> None:
        """Have the API server check an object that is to replace another one of its name; nothing is created.

        Raises ApiError when it refuses.
        """
        metadata = {name: value for name, value in body["metadata"].items() if name != "name"}
        tried = body | {"metadata": metadata | {"generateName": f"{body['metadata']['name']}-"}}
        params = {"fieldManager": FIELD_MANAGER, "dryRun": "All", **STRICT}
        await self._request("POST", resource.plural, resource.build_path(metadata["namespace"]), tried, params=params)

    async def apply(self, resource: Resource, body: Object) -> Object:
        """Apply an object (server-side apply), and take over fields that others set."""
        path = resource.build_path(body["metadata"]["namespace"], body["metadata"]["name"])
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._call(
            "PATCH", resource.plural, path, body, params=params, content_type="application/apply-patch+yaml"
        )

    async def replace(self, resource: Resource, body: Object) -> Object:
        """Write the complete object. Raises ApiError 409 when its resourceVersion has changed."""
        path = resource.build_path(body["metadata"]["namespace"], body["metadata"]["name"])
        return await self._call("PUT", resource.plural, path, body)

    async def patch(
        self, resource: Resource, namespace: str, name: str, patch: Object, subresource: str = ""
    ) -> Object:
        """Send a JSON merge patch. Return the patched object."""
        path = resource.build_path(namespace, name, subresource)
        params = {"fieldManager": FIELD_MANAGER}
        return await self._call(
            "PATCH", resource.plural, path, patch, params=params, content_type="application/merge-patch+json"
        )

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete exactly the object with this uid, and its pods. Nothing happens when it is gone."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", resource.plural, resource.build_path(namespace, name), options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def iterate_items(self, resource: Resource, namespace: str, **selectors: str) -> Listing:
        """Yield all objects that `labelSelector` and `fieldSelector` choose, one by one."""
        return Listing(self._get_pages(resource, namespace, selectors), lambda why: UnusableAnswer(200, why))

    async def _get_pages(
        self, resource: Resource, namespace: str, selectors: dict[str, str]
    ) -> AsyncIterator[ListPage]:
        params, limit = dict(selectors), PAGE
        while True:
            params["limit"] = str(limit)
            # A page of one object is read at any size.
            largest = LARGEST_PAGE if limit > 1 else None
            try:
                data = await self._fetch(
                    "GET", resource.plural, resource.build_path(namespace), params=params, largest=largest
                )
            except _TooLarge:
                limit = max(1, limit // 10)
                continue
            limit = min(PAGE, limit * 2)
            page = ListPage(data)
            del data
            yield page
            if not (token := page.metadata.get("continue")):
                return
            params["continue"] = token

    async def watch(self, resource: Resource, namespace: str, selector: str, since: str) -> AsyncIterator[Object]:
        """Yield watch events after a resourceVersion, until the server or a fault ends the stream."""
        params = {"watch": "true", "allowWatchBookmarks": "true", "labelSelector": selector, "resourceVersion": since}
        params["timeoutSeconds"] = str(random.randrange(*WATCH_SECONDS))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        path, code = resource.build_path(namespace), "<error>"
        try:
            headers = await self._make_headers()
            async with self._session.get(path, params=params, headers=headers, timeout=timeout) as stream:
                code = str(stream.status)
                if stream.status >= 400:
                    answer = await _read_bounded(stream, LARGEST_ANSWER)
                    raise ApiError(stream.status, _read_message(answer), _parse_retry_after(stream.headers))
                rest = b""
                async for data in stream.content.iter_any():
                    *lines, rest = (rest + data).split(b"\n")
                    if len(rest) > LARGEST_ANSWER:
                        raise _TooLarge
                    for line in lines:
                        yield _read_event(stream.status, line)
        except _TooLarge as error:
            raise UnusableAnswer(200, f"an event or error has more than {LARGEST_ANSWER} bytes") from error
        finally:
            self._metrics.requests.labels(code, "GET", resource.plural).inc()

    async def list(self, resource: Resource, namespace: str, **selectors: str) -> list[Object]:
        """Return all objects that `labelSelector` and `fieldSelector` choose."""
        found: list[Object] = []
        async for item in self.iterate_items(resource, namespace, **selectors):
            item["metadata"].pop("managedFields", None)
            found.append(item)
        return found

    async def _call(self, method: str, plural: str, path: str, body: Object | None = None, **options: Any) -> Object:
        answer = await self._request(method, plural, path, body, **options)
        if not is_object(answer):
            raise UnusableAnswer(200, f"{method} {path} gives no object")
        found: Object = answer
        return found

    async def _request(self, method: str, plural: str, path: str, body: Object | None = None, **options: Any) -> Any:
        answer = await self._fetch(method, plural, path, body, **options)
        try:
            return bounded_json.load_bounded_json(answer)
        except ValueError as error:
            raise UnusableAnswer(200, _quote_answer(answer)) from error

    async def _fetch(
        self,
        method: str,
        plural: str,
        path: str,
        body: Object | None = None,
        *,
        params: dict[str, str] | None = None,
        content_type: str = "application/json",
        largest: int | None = None,
    ) -> bytes:
        """Return the answer's bytes. Raises _TooLarge above `largest` bytes, UnusableAnswer without that limit."""
        headers = {**await self._make_headers(), "Content-Type": content_type}
        data = _encode(body).encode() if body is not None else None
        timeout = aiohttp.ClientTimeout(total=self._seconds_for(method), sock_connect=CONNECT_SECONDS)
        payload = _Payload(data, lambda: self._seconds_for(method)) if data is not None else None
        code = "<error>"
        try:
            async with self._session.request(
                method, path, params=params, data=payload, headers=headers, timeout=timeout
            ) as response:
                answer = await _read_bounded(response, LARGEST_ANSWER if largest is None else largest)
                code = str(response.status)
                self._warn(method, path, response.headers.getall("Warning", []))
                if response.status >= 400:
                    raise ApiError(response.status, _read_message(answer), _parse_retry_after(response.headers))
                return answer
        except _TooLarge as error:
            if largest is not None:
                raise
            raise UnusableAnswer(200, f"{method} {path} gives more than {LARGEST_ANSWER} bytes") from error
        finally:
            self._metrics.requests.labels(code, method, plural).inc()

    def _warn(self, method: str, path: str, warnings: Iterable[str]) -> None:
        """Log the API server's warnings, each one once for each object."""
        for warning in warnings:
            line = f"{method} {path}: the API server warns: {_parse_warning(warning)}"
            if line in self._warned:
                continue
            if len(self._warned) >= WARNINGS_KEPT:
                del self._warned[next(iter(self._warned))]
            self._warned[line] = None
            logger.warning("%s", line)

    async def _make_headers(self) -> dict[str, str]:
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        return {"Accept": "application/json", **({"Authorization": token} if token else {})}

    def _seconds_for(self, method: str) -> float:
        """Return how many seconds a request may last. Raises NotLeading when it must not begin.

        A write waits for admission webhooks, one after another. Ending it earlier here would not end it in the API
        server. A process that loses the Lease exits, and a late write is bound to a uid or to a name that is free.
        """
        if method == "GET":
            return TIMEOUT_SECONDS
        if self._fence is not None and self._fence() <= 0:
            raise NotLeading("this replica no longer holds the Lease")
        return WRITE_SECONDS


class _Payload(aiohttp.BytesPayload):
    """A body that checks the fence again at the moment when the request is sent, head and body together.

    Waiting for a connection can take long, and the process can be paused at any point before.
    """

    def __init__(self, value: bytes, may_leave: Callable[[], object]) -> None:
        super().__init__(value)
        self._may_leave = may_leave

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._may_leave()
        await super().write_with_length(writer, content_length)


def _parse_warning(header: str) -> str:
    """Return the text of a Warning header, which RFC 7234 defines as `299 - "text"`."""
    _, quote, text = header.partition('"')
    return text.rpartition('"')[0].replace('\\"', '"') if quote else header


async def _read_bounded(response: aiohttp.ClientResponse, largest: int) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > largest:
            raise _TooLarge
    return bytes(data)


def _parse_retry_after(headers: Mapping[str, str]) -> float:
    """Return the header's seconds; the API server sends no dates."""
    value = headers.get("Retry-After", "")
    return min(float(value), LONGEST_PAUSE_SECONDS) if value.isdecimal() else 0.0


def _read_message(answer: bytes) -> str:
    try:
        return str(bounded_json.load_bounded_json(answer)["message"])
    except (ValueError, KeyError, TypeError):
        return _quote_answer(answer)


def _quote_answer(answer: bytes) -> str:
    """Return the beginning of an answer that is not JSON, for a message."""
    return answer[:2000].decode(errors="replace").strip()[:500]


def _read_event(status: int, line: bytes) -> Object:
    """Return an event of a watch, with an object that has a version. Raises UnusableAnswer."""
    try:
        event: Object = bounded_json.load_bounded_json(line)
        kind, body = event["type"], event["object"]
        is_usable = isinstance(body, dict) and (
            kind == "ERROR"
            or ((kind == "BOOKMARK" or is_object(body)) and is_version(body["metadata"]["resourceVersion"]))
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UnusableAnswer(status, _quote_answer(line)) from error
    if not is_usable:
        raise UnusableAnswer(status, _quote_answer(line))
    return event
