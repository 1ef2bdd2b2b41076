"""Carry out the actions of a plan, independently: a failed action does not prevent the others.

In: the plan's actions, each bound to the uid of the object on which it was decided. Out: whether the cluster now has
something that the plan could not know, and the failures that the object's status has to report. Next: controller.py
writes that status.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import aiohttp

from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api, ApiError
from hone_operator.objects.resources import PODS, Key, Object, Resource
from hone_operator.reconcile import field_takeover
from hone_operator.reconcile.plan import Action, Apply, Create, Delete, Patch, get_target_name
from hone_operator.reconcile.sync_failures import FailureCounts, SyncFailure, explain_contest, explain_write_failure
from hone_operator.reconcile.write_conflicts import INSTALLATION_ANNOTATION, SpecVersion, WriteContests, find_contender

WriteFailure = ApiError | aiohttp.ClientError | TimeoutError

logger = logging.getLogger(__name__)


class WriteResult(Enum):
    """The result of one action.

    CACHED: the watch reported the change before the answer came. UNCHANGED: the write had no effect. CHANGED: the
    object changed. NAME_TAKEN: another object has the name.
    """

    CACHED = auto()
    UNCHANGED = auto()
    CHANGED = auto()
    NAME_TAKEN = auto()


@dataclass
class ExecutionResult:
    """The results of a plan's actions. `sync_failures` are reported in the status; `error` ends the pass with a retry.

    `is_undecided`: an object for which the other actions wait was not created. `is_namespace_terminating`: the
    namespace is being deleted.
    """

    has_changes: bool = False
    is_undecided: bool = False
    is_namespace_terminating: bool = False
    sync_failures: list[SyncFailure] = field(default_factory=list)
    error: WriteFailure | None = None
    wait_seconds: float | None = None


class Executor:
    """The writer of children. Its memory of failures and repeated writes ends with the process."""

    # Namespace and name of the Lease, by which two operators of one cluster recognize each other; "" without one.
    installation: str = ""

    def __init__(self, api: Api, cache: Cache, upgrading: Callable[[Key], list[Object]]) -> None:
        self._list_upgrading = upgrading
        self._upgrade_lock = asyncio.Lock()
        self._api = api
        self._cache = cache
        self.failure_counts = FailureCounts()
        self._contests = WriteContests()

    def forget(self, key: Key) -> None:
        """Forget failures and writes of an object that is gone."""
        self.failure_counts.forget(key)
        self._contests.forget(key)

    async def execute(self, key: Key, spec: SpecVersion, actions: list[Action]) -> ExecutionResult:
        """Carry out all actions for this spec of the owner. Return their results.

        Failures of the API server or of the connection are part of the outcome. Raises any other exception.
        """
        now, outcome = time.monotonic(), ExecutionResult()
        self._contests.start_spec(key, spec)
        held = [action for action in actions if self._contests.is_paused(key, _get_kind_and_name(action), now)]
        due = [action for action in actions if action not in held]
        await self._find_contenders(key, due)
        first = [action for action in due if _blocks_others(action)]
        results = await self._execute_all(key, first)
        is_free = all(result in (WriteResult.CHANGED, WriteResult.CACHED) for result in results) and not any(
            map(_blocks_others, held)
        )
        others = [action for action in due if action not in first and (is_free or not isinstance(action, Create))]
        outcome.is_undecided = not is_free
        if WriteResult.NAME_TAKEN in results:
            others = []
        last = [action for action in others if isinstance(action, Create) and action.comes_last]
        others = [action for action in others if action not in last]
        results += await self._execute_all(key, others)
        results, due = [*results, *await self._execute_all(key, last)], [*first, *others, *last]
        failures: dict[str, WriteFailure] = {}
        for action, result in zip(due, results, strict=True):
            if isinstance(result, WriteFailure):
                failures[_format_child(action)] = result
                outcome.error = outcome.error or result
                outcome.is_namespace_terminating |= isinstance(result, ApiError) and result.is_farewell
            elif isinstance(result, BaseException):
                raise result
            elif result != WriteResult.CACHED:
                outcome.has_changes |= result != WriteResult.UNCHANGED
                self._note_write(key, action)
        counted = self.failure_counts.count_failures(key, list(failures))
        for action in due:
            if (error := failures.get(_format_child(action))) and (
                found := explain_write_failure(action, error, counted[_format_child(action)])
            ):
                outcome.sync_failures.append(found)
        for child, contest in self._contests.list_contested(key, time.monotonic()):
            outcome.sync_failures.append(explain_contest(child, contest.manager))
        outcome.wait_seconds = self._contests.get_seconds_left(key, time.monotonic())
        return outcome

    async def _find_contenders(self, key: Key, actions: list[Action]) -> None:
        """Find the other writer of children that were written too often, before Hone's next write hides the traces."""
        for action in actions:
            if not isinstance(action, Apply | Patch) or not self._contests.is_suspect(key, _get_kind_and_name(action)):
                continue
            try:
                found = await self._api.get(action.resource, key.namespace, get_target_name(action))
            except (ApiError, aiohttp.ClientError, TimeoutError):
                continue
            self._contests.set_manager(key, _get_kind_and_name(action), find_contender(found, self.installation))

    def _note_write(self, key: Key, action: Action) -> None:
        """Count a write of a child."""
        if isinstance(action, Delete) or action.resource == PODS:
            return
        if self._contests.count_write(key, _get_kind_and_name(action), time.monotonic()):
            logger.warning("%s is written again and again, by Hone and by something else", _format_child(action))

    async def _execute_all(self, key: Key, actions: Sequence[Action]) -> list[WriteResult | BaseException]:
        """Carry out these actions concurrently. Return the result or the failure of each."""
        if not actions:
            return []
        return await asyncio.gather(*(self._execute_one(key, action) for action in actions), return_exceptions=True)

    async def _execute_one(self, key: Key, action: Action) -> WriteResult:
        if isinstance(action, Delete):
            if action.replaced_by:
                await self._dry_run(action.resource, action.replaced_by)
            await self._api.delete(action.resource, key.namespace, action.name, action.uid)
            return WriteResult.CACHED
        if isinstance(action, Apply) and action.waits_for_turn:
            async with self._upgrade_lock:  # of two passes that want to begin, the second plans again
                return WriteResult.CHANGED if self._list_upgrading(key) else await self._write(key, action)
        return await self._write(key, action)

    async def _write(self, key: Key, action: Create | Apply | Patch) -> WriteResult:
        target = Key(action.resource, key.namespace, get_target_name(action))
        before = self._cache.get_version(target)
        is_taken = False
        if isinstance(action, Create) or (isinstance(action, Apply) and "uid" not in action.body["metadata"]):
            found, is_taken = await self._create(action)  # Apply would take over what somebody created meanwhile
        else:
            try:
                if isinstance(action, Apply):
                    found = await self._apply(action)
                else:
                    found = await self._api.patch(action.resource, key.namespace, action.name, action.patch)
            except ApiError as error:
                if not error.is_of_another and not (isinstance(action, Patch) and error.status == 404):
                    raise
                # Deleted meanwhile, or created again under its name: the next pass decides on the present object.
                await self.refresh(action.resource, key.namespace, target.name)
                return WriteResult.CHANGED if isinstance(action, Apply) else WriteResult.CACHED
        if self._cache.may_be_gone(action.resource, found):
            await self.refresh(action.resource, key.namespace, target.name)
        else:
            self._cache.put(action.resource, found)
        if is_taken:
            return WriteResult.NAME_TAKEN
        if int(found["metadata"]["resourceVersion"]) == before:
            return WriteResult.UNCHANGED
        return WriteResult.CACHED if self._cache.get_version(target) == before else WriteResult.CHANGED

    async def _apply(self, action: Apply) -> Object:
        """Apply a child that exists. Take over fields of other writers that make the API server refuse it."""
        resource = action.resource
        found = await self._reread(resource, action.body)
        body = self._add_installation(action.body)
        if patch := field_takeover.build_takeover_patch(found):
            body = await self._take_over(resource, patch, body)
        try:
            return await self._api.apply(resource, body)
        except ApiError as error:
            if error.status != 422 or not field_takeover.is_exclusion_refusal(error.message):
                raise
            found = await self._reread(resource, body)
            patch = field_takeover.build_named_takeover_patch(found, body, error.message)
            if patch is None or not await self._is_accepted_alone(resource, body):
                raise
        return await self._apply_instead(resource, found, patch, body)

    async def _apply_instead(self, resource: Resource, found: Object, patch: Object, body: Object) -> Object:
        """Apply a child after taking over fields of others. Give the fields back where it is refused all the same."""
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        taken = await self._api.patch(resource, namespace, name, patch)
        if "resourceVersion" in body["metadata"]:
            version = taken["metadata"]["resourceVersion"]
            body = body | {"metadata": body["metadata"] | {"resourceVersion": version}}
        try:
            return await self._api.apply(resource, body)
        except ApiError:
            await self._api.patch(resource, namespace, name, field_takeover.build_restore_patch(found, taken))
            raise

    async def _is_accepted_alone(self, resource: Resource, body: Object) -> bool:
        """Return whether the API server would accept the child without fields of others, by a dry run."""
        metadata = {name: value for name, value in body["metadata"].items() if name not in ("uid", "resourceVersion")}
        try:
            await self._dry_run(resource, body | {"metadata": metadata})
        except ApiError:
            return False
        return True

    async def _take_over(self, resource: Resource, patch: Object, body: Object) -> Object:
        """Take over fields. Return the child to apply after that, with its new resourceVersion."""
        metadata = body["metadata"]
        found = await self._api.patch(resource, metadata["namespace"], metadata["name"], patch)
        if metadata.get("resourceVersion") != patch["metadata"]["resourceVersion"]:
            return body
        return body | {"metadata": metadata | {"resourceVersion": found["metadata"]["resourceVersion"]}}

    async def _reread(self, resource: Resource, body: Object) -> Object:
        found = await self._api.get(resource, body["metadata"]["namespace"], body["metadata"]["name"])
        if found is None or found["metadata"]["uid"] != body["metadata"]["uid"]:
            raise ApiError(409, "uid mismatch: deleted, or made again under its name")
        return found | {"apiVersion": resource.api_version}

    def _add_installation(self, body: Object) -> Object:
        """Return the child with an annotation that names this installation, so that others can recognize it."""
        if not self.installation:
            return body
        metadata = body["metadata"]
        annotations = (metadata.get("annotations") or {}) | {INSTALLATION_ANNOTATION: self.installation}
        return body | {"metadata": metadata | {"annotations": annotations}}

    async def _create(self, action: Create | Apply) -> tuple[Object, bool]:
        """Create an object. Return it and False, or the existing object of that name and True.

        A quota or a webhook can refuse it before the API server looks at its name, so an action that `blocks_others`
        looks the name up after any refusal.
        """
        try:
            return await self._api.create(action.resource, self._add_installation(action.body)), False
        except ApiError as error:
            if error.status != 409 and not _blocks_others(action):
                raise
            metadata = action.body["metadata"]
            found = await self._api.get(action.resource, metadata["namespace"], metadata["name"])
            if found is None:  # not its name: a quota that changes at the same time also conflicts
                raise
            return found, True

    async def _dry_run(self, resource: Resource, body: Object) -> None:
        """Raise ApiError when a dry run shows that the API server would refuse the object."""
        try:
            await self._api.try_create(resource, body)
        except ApiError as error:
            if error.is_of_spec or not error.is_refusal:
                raise

    async def refresh(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Read an object from the API server into the cache."""
        return await refresh_cached(self._api, self._cache, resource, namespace, name)


async def refresh_cached(api: Api, cache: Cache, resource: Resource, namespace: str, name: str) -> Object | None:
    """Read an object from the API server into the cache. Remove a cached object of that name with another uid."""
    cached = cache.get(resource, namespace, name)
    found = await api.get(resource, namespace, name)
    if cached is not None and (found is None or found["metadata"]["uid"] != cached["metadata"]["uid"]):
        cache.remove(resource, cached, for_good=found is not None)  # a proxy on the way may answer 404 for a while
    if found is not None:
        cache.put(resource, found)
    return found


def _blocks_others(action: Action) -> bool:
    return isinstance(action, Create) and action.blocks_others


def _get_kind_and_name(action: Action) -> tuple[str, str]:
    """Return kind and name of the object that an action is about."""
    return action.resource.kind, get_target_name(action)


def _format_child(action: Action) -> str:
    return " ".join(_get_kind_and_name(action))
