"""Succeeded FineTuneJobs with all their children, copied from those of one real run."""

import copy
from concurrent.futures import ThreadPoolExecutor

from client import CREATORS, Client, Object

OURS = "hone.dev/v1alpha1"
GIVEN_BY_SERVER = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "generateName")


class FinishedJob:
    """The objects of one finished FineTuneJob, from which others are made."""

    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._owner = client.get(f"{self._path(OURS, 'finetunejobs')}/{name}")
        self._config_map = client.get(f"{self._path('v1', 'configmaps')}/{name}-manifest")
        self._claim = client.get(f"{self._path('v1', 'persistentvolumeclaims')}/{name}")
        self._job = client.get(f"{self._path('batch/v1', 'jobs')}/{name}-train")
        (self._pod,) = client.get(f"{self._path('v1', 'pods')}?labelSelector=hone.dev/finetunejob={name}")["items"]

    def copies(self, names: list[str]) -> None:
        with ThreadPoolExecutor(CREATORS) as pool:
            for _ in pool.map(self._copy, names):
                pass

    def _copy(self, name: str) -> None:
        owner = self._make(OURS, "finetunejobs", self._owner, name)
        self._make("v1", "configmaps", self._config_map, name, owner)
        self._make("v1", "persistentvolumeclaims", self._claim, name)
        job = self._make("batch/v1", "jobs", self._job, name, owner)
        self._make("v1", "pods", self._pod, name, job)

    def _make(self, api_version: str, plural: str, model: Object, name: str, owner: Object | None = None) -> Object:
        body = rename_texts(model, self._name, name)
        for field in GIVEN_BY_SERVER:
            body["metadata"].pop(field, None)
        if owner:
            body["metadata"]["ownerReferences"][0]["uid"] = owner["metadata"]["uid"]
        status = body.pop("status", None)
        if plural == "jobs":
            _forget_selector(body)
        if plural == "pods":
            body["metadata"]["finalizers"] = []
        made = self._client.create(self._path(api_version, plural), body)
        if not status:
            return made
        path = f"{self._path(api_version, plural)}/{body['metadata']['name']}/status"
        return self._client.patch(path, {"status": status})

    def _path(self, api_version: str, plural: str) -> str:
        root = "/apis" if "/" in api_version else "/api"
        return f"{root}/{api_version}/namespaces/{self._namespace}/{plural}"


def rename_texts(found: Object, old: str, new: str) -> Object:
    """Return a copy in which `old` is replaced by `new` in every text."""

    def change(value: object) -> object:
        if isinstance(value, dict):
            return {key: change(each) for key, each in value.items()}
        if isinstance(value, list):
            return [change(each) for each in value]
        return value.replace(old, new) if isinstance(value, str) else value

    changed = change(copy.deepcopy(found))
    assert isinstance(changed, dict)
    return changed


def _forget_selector(job: Object) -> None:
    """Remove the selector, because the server gives each Job its own."""
    job["spec"].pop("selector", None)
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        labels = {
            name: value
            for name, value in metadata["labels"].items()
            if not name.endswith(("controller-uid", "job-name"))
        }
        metadata["labels"] = labels
