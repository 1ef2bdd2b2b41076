"""What the watch streams have told, so that a pass over an object needs no reads."""

from collections import defaultdict

from hone_api.layout import FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL

from hone_operator.resources import FINETUNEJOBS, INFERENCESERVICES, Key, Object, Resource

_Id = tuple[Resource, str, str]


class Cache:
    """The newest known version of each object, and which children each owner has."""

    def __init__(self) -> None:
        self._objects: dict[_Id, Object] = {}
        self._children: dict[Key, set[_Id]] = defaultdict(set)

    def put(self, resource: Resource, body: Object) -> bool:
        """Keep the object unless a newer version is known. Returns whether it was news."""
        metadata = body["metadata"]
        identity = (resource, metadata.get("namespace", ""), metadata["name"])
        known = self._objects.get(identity)
        if known is not None and _version(known) >= _version(body):
            return False
        metadata.pop("managedFields", None)
        body.setdefault("apiVersion", resource.api_version)
        body.setdefault("kind", resource.kind)
        self._objects[identity] = body
        if owner := owner_key(body):
            self._children[owner].add(identity)
        return True

    def remove(self, resource: Resource, body: Object) -> None:
        """Forget a deleted object, unless one made later has its name."""
        metadata = body["metadata"]
        identity = (resource, metadata.get("namespace", ""), metadata["name"])
        known = self._objects.get(identity)
        if known is None or known["metadata"]["uid"] != metadata["uid"]:
            return
        del self._objects[identity]
        if owner := owner_key(body):
            self._children[owner].discard(identity)
            if not self._children[owner]:
                del self._children[owner]

    def keep_only(self, resource: Resource, namespace: str, uids: set[str], version: int) -> list[Object]:
        """Forget what a list at `version` did not have. Returns what is gone."""
        gone = [
            body
            for body in self.all(resource, namespace)
            if body["metadata"]["uid"] not in uids and _version(body) <= version
        ]
        for body in gone:
            self.remove(resource, body)
        return gone

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self._objects.get((resource, namespace, name))

    def children(self, owner: Key, resource: Resource) -> list[Object]:
        """The owner's children of one kind, by name."""
        identities = sorted((i for i in self._children.get(owner, ()) if i[0] == resource), key=lambda i: i[2])
        return [self._objects[identity] for identity in identities]

    def all(self, resource: Resource, namespace: str = "") -> list[Object]:
        """All objects of a kind, in one namespace or ("") in every one."""
        return [
            body for (kind, space, _), body in self._objects.items() if kind == resource and namespace in ("", space)
        ]


def owner_key(body: Object) -> Key | None:
    """The Hone object that a child's labels name."""
    metadata = body["metadata"]
    labels = metadata.get("labels") or {}
    for label, resource in ((FINETUNEJOB_LABEL, FINETUNEJOBS), (INFERENCESERVICE_LABEL, INFERENCESERVICES)):
        if name := labels.get(label):
            return Key(resource, metadata.get("namespace", ""), name)
    return None


def _version(body: Object) -> int:
    return int(body["metadata"]["resourceVersion"])
