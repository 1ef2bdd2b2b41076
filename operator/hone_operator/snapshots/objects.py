"""Read objects from the cache, and from the API server where the cache may not have all of an object.

In: kind, namespace and name of a child, or the owner of pods. Out: the object, or None. Watches report only objects
with Hone's label, and of some objects the cache keeps only a part. Used by the readers of both kinds.
"""

from hone_api.layout import FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL, MANAGED_BY_LABEL, MANAGER

from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api
from hone_operator.kube.retention import is_complete
from hone_operator.objects.resources import CLAIMS, FINETUNEJOBS, JOBS, PODS, Key, Object, Resource, is_controlled_by
from hone_operator.reconcile.execution import refresh_cached


class ObjectReader:
    """Reads children of an object, and the claims that it names."""

    def __init__(self, api: Api, cache: Cache) -> None:
        self._api = api
        self._cache = cache

    async def read(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Read an object from the API server into the cache."""
        return await refresh_cached(self._api, self._cache, resource, namespace, name)

    async def read_cached(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Return an object from the cache; read it where the cache has only a part of it."""
        cached = self._cache.get(resource, namespace, name)
        return cached if cached is None or is_complete(cached) else await self.read(resource, namespace, name)

    async def read_child(self, resource: Resource, owner: Object, name: str) -> Object | None:
        """Return a child from the cache; read it where another object owns it, since watches may not report that."""
        cached = self._cache.get(resource, owner["metadata"]["namespace"], name)
        # Of a finished FineTuneJob's Job the cache has only the metadata; the FineTuneJob may have lost its status
        # since.
        has_all = cached is None or (is_complete(cached) and (resource != JOBS or "spec" in cached))
        if cached is None or (is_controlled_by(cached, owner) and has_all):
            return cached
        return await self.read(resource, owner["metadata"]["namespace"], name)

    async def read_child_or_foreign(self, resource: Resource, owner: Object, name: str) -> Object | None:
        """Return a child that may be applied; read it where the cache lacks it: apply would take over another's."""
        found = await self.read_child(resource, owner, name)
        return found or await self.read(resource, owner["metadata"]["namespace"], name)

    async def read_claims(self, namespace: str, names: list[str]) -> list[Object]:
        """Return the claims that exist, from the cache where it has them: access modes never change."""
        return [claim for name in names if (claim := await self._read_claim(namespace, name))]

    async def _read_claim(self, namespace: str, name: str) -> Object | None:
        return await self.read_cached(CLAIMS, namespace, name) or await self._api.get(CLAIMS, namespace, name)

    async def complete_pods(self, key: Key) -> None:
        """Read the pods of an owner that appeared after its pods, which the cache keeps only in part."""
        if not self._cache.lacks_pods(key):
            return
        label = FINETUNEJOB_LABEL if key.resource == FINETUNEJOBS else INFERENCESERVICE_LABEL
        await self.read_pods(key, f"{MANAGED_BY_LABEL}={MANAGER},{label}={key.name}")
        self._cache.has_pods(key)

    async def read_pods(self, key: Key, selector: str) -> None:
        """Read the pods of the key's namespace with these labels into the cache."""
        async for pod in self._api.iterate_items(PODS, key.namespace, labelSelector=selector):
            self._cache.put(PODS, pod)
