"""Carries out the actions of a plan, each on its own: an action that fails keeps no other from being carried out.

In: the plan's actions, each bound to the uid of the object that the plan was decided on. Out: whether something is new
that the plan could not know, and the failures that the object's status has to report. controller.py writes that status.
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
from hone_operator.reconcile.plan import Action, Apply, Create, Delete, Patch, name_of
from hone_operator.reconcile.sync_failures import Trouble, Troubles, contested, failed
from hone_operator.reconcile.write_conflicts import INSTALLATION, Contests, Spec, contender

Failure = ApiError | aiohttp.ClientError | TimeoutError

logger = logging.getLogger(__name__)


class Written(Enum):
    """What came of one action.

    KNOWN: the watch had reported it before the answer came. WITHOUT_EFFECT: the object is as it was before.
    """

    KNOWN = auto()
    WITHOUT_EFFECT = auto()
    NEWS = auto()
    NAME_TAKEN = auto()


@dataclass
class Outcome:
    """What came of a plan's actions. `troubles` are reported to the object; `error` ends the pass with a retry.

    `is_undecided`: an object that the other actions wait for was not made.
    """

    has_news: bool = False
    is_undecided: bool = False
    is_farewell: bool = False
    troubles: list[Trouble] = field(default_factory=list)
    error: Failure | None = None
    wait_seconds: float | None = None


class Executor:
    """Writes children. What it remembers of failures and repeated repairs is only for this process."""

    # Namespace and name of the Lease, which tell apart two operators of one cluster; "" without one.
    installation: str = ""

    def __init__(self, api: Api, cache: Cache, upgrading: Callable[[Key], list[Object]]) -> None:
        self._upgrading = upgrading
        self._turn = asyncio.Lock()
        self._api = api
        self._cache = cache
        self.troubles = Troubles()
        self._contests = Contests()

    def forget(self, key: Key) -> None:
        """Forget what is remembered of an object that is gone."""
        self.troubles.forget(key)
        self._contests.forget(key)

    async def carry_out(self, key: Key, spec: Spec, actions: list[Action]) -> Outcome:
        """Carry out all actions for this spec of the owner.

        Raises what is not a failure of the API server or of the way to it.
        """
        now, outcome = time.monotonic(), Outcome()
        self._contests.begin(key, spec)
        held = [action for action in actions if self._contests.holds(key, _child(action), now)]
        due = [action for action in actions if action not in held]
        await self._find_contenders(key, due)
        first = [action for action in due if _decides(action)]
        results = await self._act_on(key, first)
        is_free = all(result in (Written.NEWS, Written.KNOWN) for result in results) and not any(map(_decides, held))
        others = [action for action in due if action not in first and (is_free or not isinstance(action, Create))]
        outcome.is_undecided = not is_free
        if Written.NAME_TAKEN in results:
            others = []
        results, due = [*results, *await self._act_on(key, others)], [*first, *others]
        failures: dict[str, Failure] = {}
        for action, result in zip(due, results, strict=True):
            if isinstance(result, Failure):
                failures[_name(action)] = result
                outcome.error = outcome.error or result
                outcome.is_farewell |= isinstance(result, ApiError) and result.is_farewell
            elif isinstance(result, BaseException):
                raise result
            elif result != Written.KNOWN:
                outcome.has_news |= result != Written.WITHOUT_EFFECT
                self._note_write(key, action)
        counted = self.troubles.count(key, list(failures))
        for action in due:
            if (error := failures.get(_name(action))) and (found := failed(action, error, counted[_name(action)])):
                outcome.troubles.append(found)
        for child, contest in self._contests.contested(key, time.monotonic()):
            outcome.troubles.append(contested(child, contest.manager))
        outcome.wait_seconds = self._contests.seconds_left(key, time.monotonic())
        return outcome

    async def _find_contenders(self, key: Key, actions: list[Action]) -> None:
        """Find out who else writes the children that were written too often: a write of Hone's wipes the traces."""
        for action in actions:
            if not isinstance(action, Apply | Patch) or not self._contests.is_suspect(key, _child(action)):
                continue
            try:
                found = await self._api.get(action.resource, key.namespace, name_of(action))
            except (ApiError, aiohttp.ClientError, TimeoutError):
                continue
            self._contests.blame(key, _child(action), contender(found, self.installation))

    def _note_write(self, key: Key, action: Action) -> None:
        """Count a write of a child."""
        if isinstance(action, Delete) or action.resource == PODS:
            return
        if self._contests.note(key, _child(action), time.monotonic()):
            logger.warning("%s is written again and again, by Hone and by something else", _name(action))

    async def _act_on(self, key: Key, actions: Sequence[Action]) -> list[Written | BaseException]:
        """Carry out these at once. Return what came of each, failures included."""
        if not actions:
            return []
        return await asyncio.gather(*(self._act(key, action) for action in actions), return_exceptions=True)

    async def _act(self, key: Key, action: Action) -> Written:
        if isinstance(action, Delete):
            if action.replaced_by:
                await self._try(action.resource, action.replaced_by)
            await self._api.delete(action.resource, key.namespace, action.name, action.uid)
            return Written.KNOWN
        if isinstance(action, Apply) and action.in_turn:
            async with self._turn:  # of two passes that planned to begin, the second is planned again
                return Written.NEWS if self._upgrading(key) else await self._write(key, action)
        return await self._write(key, action)

    async def _write(self, key: Key, action: Create | Apply | Patch) -> Written:
        target = Key(action.resource, key.namespace, name_of(action))
        before = self._cache.version(target)
        is_taken = False
        if isinstance(action, Create) or (isinstance(action, Apply) and "uid" not in action.body["metadata"]):
            found, is_taken = await self._create(action)  # Apply would take over what another has made meanwhile
        else:
            try:
                if isinstance(action, Apply):
                    found = await self._apply(action)
                else:
                    found = await self._api.patch(action.resource, key.namespace, action.name, action.patch)
            except ApiError as error:
                if not error.is_of_another and not (isinstance(action, Patch) and error.status == 404):
                    raise
                # Deleted meanwhile, or made again under its name: the next pass decides on what is there now.
                await self.refresh(action.resource, key.namespace, target.name)
                return Written.NEWS if isinstance(action, Apply) else Written.KNOWN
        if self._cache.may_be_gone(action.resource, found):
            await self.refresh(action.resource, key.namespace, target.name)
        else:
            self._cache.put(action.resource, found)
        if is_taken:
            return Written.NAME_TAKEN
        if int(found["metadata"]["resourceVersion"]) == before:
            return Written.WITHOUT_EFFECT
        return Written.KNOWN if self._cache.version(target) == before else Written.NEWS

    async def _apply(self, action: Apply) -> Object:
        """Apply a child that exists, and take over the fields that keep it from becoming so."""
        resource = action.resource
        found = await self._reread(resource, action.body)
        body = self._signed(action.body)
        if patch := field_takeover.take_over(found):
            body = await self._take_over(resource, patch, body)
        try:
            return await self._api.apply(resource, body)
        except ApiError as error:
            if error.status != 422 or not field_takeover.excludes_another(error.message):
                raise
            found = await self._reread(resource, body)
            patch = field_takeover.take_over_named(found, body, error.message)
            if patch is None or not await self._is_right_alone(resource, body):
                raise
        return await self._apply_instead(resource, found, patch, body)

    async def _apply_instead(self, resource: Resource, found: Object, patch: Object, body: Object) -> Object:
        """Apply a child in place of what others wrote. They get their fields back where it is refused all the same."""
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        taken = await self._api.patch(resource, namespace, name, patch)
        if "resourceVersion" in body["metadata"]:
            version = taken["metadata"]["resourceVersion"]
            body = body | {"metadata": body["metadata"] | {"resourceVersion": version}}
        try:
            return await self._api.apply(resource, body)
        except ApiError:
            await self._api.patch(resource, namespace, name, field_takeover.give_back(found, taken))
            raise

    async def _is_right_alone(self, resource: Resource, body: Object) -> bool:
        """Whether the API server would take the child without what others wrote, by a dry run."""
        metadata = {name: value for name, value in body["metadata"].items() if name not in ("uid", "resourceVersion")}
        try:
            await self._try(resource, body | {"metadata": metadata})
        except ApiError:
            return False
        return True

    async def _take_over(self, resource: Resource, patch: Object, body: Object) -> Object:
        """Take over fields. Return the child as it is to be applied now, with the version that it then has."""
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

    def _signed(self, body: Object) -> Object:
        """Return the child with the name of this installation, by which another one is recognized."""
        if not self.installation:
            return body
        metadata = body["metadata"]
        annotations = (metadata.get("annotations") or {}) | {INSTALLATION: self.installation}
        return body | {"metadata": metadata | {"annotations": annotations}}

    async def _create(self, action: Create | Apply) -> tuple[Object, bool]:
        """Return the new object, or the one that has its name already and True: the next pass judges it.

        A quota or a webhook can refuse what decides before the API server looks at its name.
        """
        try:
            return await self._api.create(action.resource, self._signed(action.body)), False
        except ApiError as error:
            if error.status != 409 and not _decides(action):
                raise
            metadata = action.body["metadata"]
            found = await self._api.get(action.resource, metadata["namespace"], metadata["name"])
            if found is None:  # not its name: a quota that somebody else changed at the same time also conflicts
                raise
            return found, True

    async def _try(self, resource: Resource, body: Object) -> None:
        """Raise ApiError when the API server would not let the object be made, as far as it can tell."""
        try:
            await self._api.try_create(resource, body)
        except ApiError as error:
            if error.is_of_spec or not error.is_refusal:
                raise

    async def refresh(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Read an object from the API server into the cache."""
        return await refresh(self._api, self._cache, resource, namespace, name)


async def refresh(api: Api, cache: Cache, resource: Resource, namespace: str, name: str) -> Object | None:
    """Read an object from the API server into the cache. An object of that name with another uid is gone."""
    cached = cache.get(resource, namespace, name)
    found = await api.get(resource, namespace, name)
    if cached is not None and (found is None or found["metadata"]["uid"] != cached["metadata"]["uid"]):
        cache.remove(resource, cached, for_good=found is not None)  # a proxy on the way may answer 404 for a while
    if found is not None:
        cache.put(resource, found)
    return found


def _decides(action: Action) -> bool:
    return isinstance(action, Create) and action.decides


def _child(action: Action) -> tuple[str, str]:
    """Kind and name of the object that an action is about."""
    return action.resource.kind, name_of(action)


def _name(action: Action) -> str:
    return " ".join(_child(action))
