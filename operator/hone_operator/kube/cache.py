"""The informer cache: the objects that lists and watches have reported, so that a pass needs no reads.

In: objects from reflector.py and from answers to writes, in any order. Out: the newest known version of each. There may
be thousands of finished FineTuneJobs, so they are kept compressed, and with few of their children. How much of a child
is kept: retention.py.
"""

import json
import math
import time
import zlib
from collections import defaultdict
from typing import NamedTuple

from hone_operator.kube.pod_cache_limit import Place
from hone_operator.kube.retention import PARTIAL, PodBudget, Unknown, is_complete, is_made, reduce_child
from hone_operator.objects import bounded_json, pod_fields, sizes
from hone_operator.objects.owners import find_owner_key
from hone_operator.objects.resources import (
    CHILDREN,
    CLAIMS,
    CONFIGMAPS,
    FINETUNEJOBS,
    JOBS,
    OWNERS,
    PODS,
    Key,
    Object,
    Resource,
    has_ended,
    is_terminal,
)
from hone_operator.objects.texts import truncate_all_texts

# An answer comes at most as late as a request may take; a list of many pages takes longer.
REMEMBERED_SECONDS = 600.0
MOST_REMEMBERED = 100_000
# A pass reads all pods of its owner: of more than MANY_PODS, PODS_A_SECOND on average.
MANY_PODS, PODS_A_SECOND = 500, 1000
# Bytes of a packed claim; usual ones have a tenth of it.
LARGEST_CLAIM = 4 << 10

_Id = tuple[Resource, str]
_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder each time


class _Packed(NamedTuple):
    """An object that is rarely used, as compressed JSON: a tenth of what its dicts take."""

    version: int
    uid: str
    is_complete: bool
    data: bytes


class Cache:
    """The newest known version of each object, and which children each owner has.

    Of a finished FineTuneJob's children it keeps only the metadata of Jobs, and the pods that have not ended. Of
    children without an owner it keeps only the identity: see retention.py.
    """

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[str, dict[str, Object | _Packed]]] = defaultdict(lambda: defaultdict(dict))
        self._children: dict[Key, set[_Id]] = defaultdict(set)
        self._finished: set[Key] = set()
        # By uid: the version of the deletion, and until when it is remembered.
        self._deleted: dict[str, tuple[float, float]] = {}
        self._listed: dict[tuple[Resource, str], int] = {}
        self._lacking: set[Key] = set()
        self._pods = PodBudget()

    def put(self, resource: Resource, body: Object) -> bool:
        """Keep the object unless a newer version, or its deletion, is known. Return whether it was news.

        An answer to a write may be read after the watch has reported the deletion.
        """
        metadata = body["metadata"]
        version, uid = _read_identity(body)
        if version < self._deleted.get(uid, (-1.0, 0.0))[0]:
            return False
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        known = self._known(resource, namespace, name)
        if known is not None:
            known_version, known_uid = _read_identity(known)
            if known_uid != uid:  # the older of the two is gone, though an answer about it can still come
                self._remember(uid if known_version >= version else known_uid, max(known_version, version))
            if known_version > version or (known_version == version and not self._is_more(resource, known, body)):
                return False
        metadata.pop("managedFields", None)
        body.setdefault("apiVersion", resource.api_version)
        body.setdefault("kind", resource.kind)
        if resource == PODS:
            self._pods.release(Place(namespace, name))
            body = pod_fields.select_fields(body)
        if resource in CHILDREN:  # an owner's status is Hone's own
            truncate_all_texts(body.get("status") or {})
        body = sizes.drop_oversized(body)
        if resource == PODS and sizes.OVERSIZED_FIELD in body:
            body["spec"] = {"containers": []}
        if known is not None:
            self._forget(resource, namespace, name)
        is_kept = self._keep(resource, body)
        if resource == FINETUNEJOBS:
            self._note_end(Key(resource, namespace, name), body)
        return is_kept or known is not None

    def remove(self, resource: Resource, body: Object, *, for_good: bool = False) -> None:
        """Forget an object that a watch no longer has, unless a later object has its name.

        `body` has the version of its deletion. The object may come back with a later version, when only its labels had
        hidden it. With `for_good` it is certain that it does not exist.
        """
        metadata = body["metadata"]
        version, deleted = _read_identity(body)
        self._remember(deleted, math.inf if for_good else version)
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        known = self._known(resource, namespace, name)
        if known is None and resource == PODS:
            self._pods.release(Place(namespace, name))
        if known is None or _read_identity(known)[1] != metadata["uid"]:
            return
        self._forget(resource, namespace, name)
        if resource in OWNERS:
            key = Key(resource, namespace, name)
            self._finished.discard(key)
            self._keep_again(key)

    def lacks_pods(self, owner: Key) -> bool:
        """Return whether pods of this owner were reported before it, so that they were kept only in part."""
        return owner in self._lacking

    def has_pods(self, owner: Key) -> None:
        """Note that the pods of this owner have been read."""
        self._lacking.discard(owner)

    def count_unknown_pods(self, owner: Key) -> Unknown:
        """Return how many pods of this owner there is no room for."""
        return self._pods.count_unknown(owner)

    def keep_only(self, resource: Resource, namespace: str, uids: set[str], version: int) -> list[Object]:
        """Forget what a list at `version` did not have. Return the objects that are gone."""
        self._listed[resource, namespace] = version
        gone = []
        if resource == PODS:
            self._pods.keep_only(namespace, uids)
        for space, objects in self._spaces(resource, namespace).items():
            for name, found in objects.items():
                known_version, uid = _read_identity(found)
                if uid not in uids and known_version <= version:
                    gone.append((space, name))
        bodies = [body for space, name in gone if (body := self.get(resource, space, name))]
        for body in bodies:
            self.remove(resource, body)
            self._remember(body["metadata"]["uid"], version)
        return bodies

    def may_be_gone(self, resource: Resource, body: Object) -> bool:
        """Return whether a write's answer is older than the last list, whose watch reports only later deletions."""
        listed = max(self._listed.get((resource, space), -1) for space in ("", body["metadata"].get("namespace", "")))
        return int(body["metadata"]["resourceVersion"]) <= listed

    def is_newer_than(self, resource: Resource, namespace: str, version: int) -> bool:
        """Return whether an earlier list had a later version, as it has when etcd was restored from a snapshot."""
        return self._listed.get((resource, namespace), -1) > version

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        known = self._known(resource, namespace, name)
        return None if known is None else _unpack(known)

    def has(self, key: Key) -> bool:
        return self.get_version(key) is not None

    def get_version(self, key: Key) -> int | None:
        """Return the newest known version of the object."""
        known = self._known(key.resource, key.namespace, key.name)
        return None if known is None else _read_identity(known)[0]

    def list_children(self, owner: Key, resource: Resource) -> list[Object]:
        """Return the owner's children of one kind, sorted by name."""
        names = sorted(name for kind, name in self._children.get(owner, ()) if kind == resource)
        of_namespace = self._objects[resource][owner.namespace] if names else {}
        return [_unpack(of_namespace[name]) for name in names]

    def find_pods_delay(self, owner: Key) -> float:
        """Return the seconds that a changed pod of this owner waits, so that changes of many pods share a pass."""
        count = len(self._children.get(owner, ()))
        return count / PODS_A_SECOND if count > MANY_PODS else 0.0

    def list_objects(self, resource: Resource, namespace: str = "") -> list[Object]:
        """Return all objects of a kind, in one namespace or ("") in every one."""
        return [_unpack(known) for space in self._spaces(resource, namespace).values() for known in space.values()]

    def list_keys(self, resource: Resource) -> list[Key]:
        """Return the keys of all objects of a kind, without unpacking any."""
        return [Key(resource, space, name) for space, objects in self._objects[resource].items() for name in objects]

    def is_finished(self, key: Key) -> bool:
        """Return whether this is a FineTuneJob that has its result."""
        return key in self._finished

    def _remember(self, uid: str, version: float) -> None:
        """Remember a deletion. The oldest ones are forgotten after REMEMBERED_SECONDS, or when there are too many."""
        now = time.monotonic()
        version = max(version, self._deleted.pop(uid, (-1.0, 0.0))[0])
        self._deleted[uid] = (version, now + REMEMBERED_SECONDS)
        while (oldest := next(iter(self._deleted))) != uid:
            if self._deleted[oldest][1] > now and len(self._deleted) <= MOST_REMEMBERED:
                break
            del self._deleted[oldest]

    def _spaces(self, resource: Resource, namespace: str) -> dict[str, dict[str, Object | _Packed]]:
        spaces = self._objects[resource]
        return {namespace: spaces.get(namespace, {})} if namespace else spaces

    def _known(self, resource: Resource, namespace: str, name: str) -> Object | _Packed | None:
        return self._objects[resource].get(namespace, {}).get(name)

    def _keep(self, resource: Resource, body: Object) -> bool:
        owner = find_owner_key(resource, body)
        stored = _keep_part(resource, body, owner_is_finished=owner in self._finished)
        if stored is None:
            return False
        if resource == PODS:
            return self._keep_pod(owner, body)
        if isinstance(stored, dict) and resource in CHILDREN:
            if not (owner and self.has(owner) and is_made(resource, body)):
                stored = reduce_child(body)
            elif resource == CONFIGMAPS:
                stored = _pack(body)
        self._store(resource, owner, body["metadata"], stored)
        return True

    def _store(self, resource: Resource, owner: Key | None, metadata: Object, stored: Object | _Packed) -> None:
        self._objects[resource][metadata.get("namespace", "")][metadata["name"]] = stored
        if owner:
            self._children[owner].add((resource, metadata["name"]))

    def _keep_pod(self, owner: Key | None, body: Object) -> bool:
        """Keep as much of a pod as there is room for. Return whether its owner needs a pass."""
        has_owner = owner is not None and self.has(owner)
        if not has_owner or PARTIAL in body:
            is_kept = self._keep_reduced(owner, reduce_child(body))
            if owner and is_kept:
                self._lacking.add(owner)
            return is_kept or has_owner
        others = self._pods.admit(owner, body) if is_complete(body) else None
        if others is None:
            self._keep_reduced(owner, _strip_spec(body), has_room=False)
            return True
        self._store(PODS, owner, body["metadata"], body)
        for place in others:
            other = self._objects[PODS][place.namespace][place.name]
            assert isinstance(other, dict)  # of pods none is packed
            self._forget(PODS, *place)
            self._keep_reduced(find_owner_key(PODS, other), _strip_spec(other), has_room=False)
        return True

    def _keep_reduced(self, owner: Key | None, body: Object, *, has_room: bool = True) -> bool:
        """Keep a reduced pod. `has_room`: whether it is reduced for another reason than a lack of room."""
        others = self._pods.admit_reduced(owner, body)
        if others is None:
            self._pods.note(owner, body, is_dropped=True)
            return False
        self._store(PODS, owner, body["metadata"], body)
        if not has_room:
            self._pods.note(owner, body, is_dropped=False)
        for place in others:
            other = _unpack(self._objects[PODS][place.namespace][place.name])
            self._forget(PODS, *place)
            self._pods.note(find_owner_key(PODS, other), other, is_dropped=True)
        return True

    def _forget(self, resource: Resource, namespace: str, name: str) -> None:
        of_namespace = self._objects[resource][namespace]
        known = _unpack(of_namespace.pop(name))
        if resource == PODS:
            self._pods.release(Place(namespace, name))
        if not of_namespace:
            del self._objects[resource][namespace]
        if owner := find_owner_key(resource, known):
            self._children[owner].discard((resource, name))
            if not self._children[owner]:
                del self._children[owner]
                self._lacking.discard(owner)

    def _is_more(self, resource: Resource, known: Object | _Packed, body: Object) -> bool:
        """Return whether more of the same version would be kept now, since its owner is known by now."""
        if known.is_complete if isinstance(known, _Packed) else is_complete(known):
            return False
        owner = find_owner_key(resource, body)
        return owner is not None and self.has(owner)

    def _note_end(self, key: Key, body: Object) -> None:
        if not has_ended(body):
            self._finished.discard(key)
        elif key not in self._finished:
            self._finished.add(key)
            self._keep_again(key)

    def _keep_again(self, key: Key) -> None:
        """Decide again how much of an owner's children is kept."""
        for resource, name in list(self._children.get(key, ())):
            child = _unpack(self._objects[resource][key.namespace][name])
            self._forget(resource, key.namespace, name)
            self._keep(resource, child)


def _keep_part(resource: Resource, body: Object, *, owner_is_finished: bool) -> Object | _Packed | None:
    if resource == FINETUNEJOBS and is_terminal(body):
        return _pack(body)
    if resource == CLAIMS:  # they outlive their owners, and services use them then
        packed = _pack(body)
        return packed if len(packed.data) <= LARGEST_CLAIM else _pack(reduce_child(body))
    if not owner_is_finished:
        return body
    if resource == JOBS:
        parts = ("apiVersion", "kind", "metadata", PARTIAL)
        return _pack({part: body[part] for part in parts if part in body})
    has_ended = (body.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return None if resource != PODS or has_ended else body


def _strip_spec(pod: Object) -> Object:
    return reduce_child(pod, with_status=True) | {"spec": {"containers": []}}


def _pack(body: Object) -> _Packed:
    return _Packed(*_read_identity(body), is_complete(body), zlib.compress(_encode(body).encode(), 1))


def _unpack(known: Object | _Packed) -> Object:
    if not isinstance(known, _Packed):
        return known
    found: Object = bounded_json.load_bounded_json(zlib.decompress(known.data))
    return found


def _read_identity(known: Object | _Packed) -> tuple[int, str]:
    """Return version and uid."""
    if isinstance(known, _Packed):
        return known.version, known.uid
    return int(known["metadata"]["resourceVersion"]), known["metadata"]["uid"]
