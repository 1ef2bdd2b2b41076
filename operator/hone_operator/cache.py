"""What the watch streams have told, so that a pass over an object needs no reads."""

from collections import defaultdict

from hone_api.layout import FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL

from hone_operator.resources import FINETUNEJOBS, INFERENCESERVICES, Key, Object, Resource

_Id = tuple[Resource, str]


class Cache:
    """The newest known version of each object, and which children each owner has."""

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[str, dict[str, Object]]] = defaultdict(lambda: defaultdict(dict))
        self._children: dict[Key, set[_Id]] = defaultdict(set)

    def put(self, resource: Resource, body: Object) -> bool:
        """Keep the object unless a newer version is known. Returns whether it was news."""
        metadata = body["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        known = self.get(resource, namespace, name)
        if known is not None and _version(known) >= _version(body):
            return False
        metadata.pop("managedFields", None)
        body.setdefault("apiVersion", resource.api_version)
        body.setdefault("kind", resource.kind)
        if known is not None:
            self._disown(resource, known)
        self._objects[resource][namespace][name] = body
        if owner := owner_key(body):
            self._children[owner].add((resource, name))
        return True

    def remove(self, resource: Resource, body: Object) -> None:
        """Forget a deleted object, unless one made later has its name."""
        metadata = body["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        known = self.get(resource, namespace, name)
        if known is None or known["metadata"]["uid"] != metadata["uid"]:
            return
        of_namespace = self._objects[resource][namespace]
        del of_namespace[name]
        if not of_namespace:
            del self._objects[resource][namespace]
        self._disown(resource, known)

    def _disown(self, resource: Resource, known: Object) -> None:
        if owner := owner_key(known):
            self._children[owner].discard((resource, known["metadata"]["name"]))
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
        return self._objects[resource].get(namespace, {}).get(name)

    def children(self, owner: Key, resource: Resource) -> list[Object]:
        """The owner's children of one kind, by name."""
        names = sorted(name for kind, name in self._children.get(owner, ()) if kind == resource)
        of_namespace = self._objects[resource][owner.namespace] if names else {}
        return [of_namespace[name] for name in names]

    def all(self, resource: Resource, namespace: str = "") -> list[Object]:
        """All objects of a kind, in one namespace or ("") in every one."""
        spaces = self._objects[resource]
        if namespace:
            return list(spaces.get(namespace, {}).values())
        return [body for space in spaces.values() for body in space.values()]


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
