"""Run the operator's controller on a real API server, pass by pass, and simulate the missing parts of a cluster.

No kubelet and no controllers run, so this module simulates the parts that the operator observes: the garbage collector,
the roll-out of a Deployment with one pod, and the end of a preparing Job. Passes follow lists instead of watches, so
that nothing depends on time.
"""

import asyncio
import copy
import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from unittest import mock

from apiserver import ADMIN, ApiServer
from hone_api.finetunejobs.spec import FineTuneJob, FineTuneJobSpec, TrainerResources
from hone_api.inferenceservices.spec import EngineResources, InferenceService, InferenceServiceSpec
from hone_api.pods.pod_options import PodOptions
from hone_operator.controller import Controller
from hone_operator.kube.client import Api, ApiError
from hone_operator.objects.resources import (
    AUTOSCALERS,
    BUDGETS,
    CLAIMS,
    CONFIGMAPS,
    DEPLOYMENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    JOBS,
    OWNERS,
    PODS,
    SERVICES,
    WATCHED,
    Key,
    Object,
    Resource,
)
from hone_operator.observability.metrics import Metrics
from hone_operator.pods.pod_levels import PRIVILEGED
from hone_operator.pods.pod_spec import Images
from kubernetes.aio import client
from pydantic import Field, create_model

CHILDREN = (JOBS, DEPLOYMENTS, SERVICES, CONFIGMAPS, BUDGETS, AUTOSCALERS, CLAIMS)
CRDS = Resource("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
NAMESPACES = Resource("v1", "Namespace", "namespaces")
OURS = "app.kubernetes.io/managed-by=hone"
MOST_PASSES = 30
NOW = "2026-03-01T11:00:00Z"
IMAGE = "registry.invalid/runtime"


class Refused(Exception):
    """The API server refuses a child that the spec asks for."""


def _next_version() -> tuple[type[FineTuneJob], type[InferenceService]]:
    """Return the models of a version with further fields, one with a default, and another default of a known one."""
    new = {"new_option": (str | None, None), "new_default": (bool, True)}
    pod = create_model("PodOptions", __base__=PodOptions, **new)  # type: ignore[call-overload]
    memory = {"shared_memory": (str, "16Gi")}
    trainer = create_model("TrainerResources", __base__=TrainerResources, **memory)  # type: ignore[call-overload]
    engine = create_model("EngineResources", __base__=EngineResources, **memory)  # type: ignore[call-overload]
    made = []
    for kind, spec, resources in (
        (FineTuneJob, FineTuneJobSpec, trainer),
        (InferenceService, InferenceServiceSpec, engine),
    ):
        parts = {"pod": (pod, Field(pod())), "resources": (resources, Field(resources()))}
        of = create_model(spec.__name__, __base__=spec, **parts)
        made.append(create_model(kind.__name__, __base__=kind, spec=(of, Field())))
    return made[0], made[1]


MODELS = [(FineTuneJob, InferenceService), _next_version()]


class World:
    """An API server, and one controller on it at a time."""

    def __init__(self, server: ApiServer) -> None:
        self.runner = asyncio.Runner()
        self.version = 0
        self.server = server
        self.api: Api = self.run(self._connect())
        self.crds = [self.get(CRDS, "", f"{resource.plural}.hone.dev") for resource in OWNERS]
        self.restart()

    async def _connect(self, metrics: Metrics | None = None) -> Api:
        configuration = client.Configuration()
        configuration.host, configuration.verify_ssl = self.server.url, False
        configuration.api_key = {"BearerToken": ADMIN}
        configuration.api_key_prefix = {"BearerToken": "Bearer"}
        return Api(configuration, metrics or Metrics())

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def close(self) -> None:
        self.run(self.controller.stop())
        self.run(self.api.close())
        self.runner.close()

    def restart(self) -> None:
        """Restart the operator without its memory."""

        async def begin() -> Controller:
            self.metrics = Metrics()
            api = await self._connect(self.metrics)
            engines = {"vllm": f"vllm:{self.version}", "sglang": "s:1", "tgi": "t:1"}
            # The specs have any field of a pod: at a stricter level most of them would be refused.
            images = Images(f"{IMAGE}:{self.version}", engines, level=PRIVILEGED)
            return Controller(api, images, [], Metrics(), lambda: True)

        if hasattr(self, "controller"):
            self.run(self.controller.stop())
        self.controller: Controller = self.run(begin())

    def upgrade(self, version: int) -> None:
        """Install the CRDs and the operator of a version."""
        self.version = version
        for crd in self.crds:
            body = copy.deepcopy(crd)
            body["metadata"] = {"name": crd["metadata"]["name"]}
            if version:
                spec = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
                spec["pod"]["properties"] |= {"newOption": {"type": "string"}}
                spec["pod"]["properties"] |= {"newDefault": {"type": "boolean", "default": True}}
                spec["resources"]["properties"]["sharedMemory"]["default"] = "16Gi"
            patch = {"spec": {"versions": body["spec"]["versions"]}}
            self.run(self.api.patch(CRDS, "", body["metadata"]["name"], patch))
        self._wait_for_schema()
        self.restart()

    def _wait_for_schema(self) -> None:
        """Wait until the API server fills in the defaults of the new schema."""
        for kind, resource, least in (
            ("FineTuneJob", FINETUNEJOBS, {"model": {"name": "a/b"}, "dataset": {"name": "a/b"}}),
            ("InferenceService", INFERENCESERVICES, {"model": {"name": "a/b"}}),
        ):
            is_new = bool(self.version)
            for _ in range(600):
                metadata = {"generateName": "probe", "namespace": "default"}
                body = {"apiVersion": "hone.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": least}
                path = resource.build_path("default") + "?dryRun=All"
                found = self.run(self.api._call("POST", resource.plural, path, body))
                if found["spec"].get("resources", {}).get("sharedMemory") == ("16Gi" if is_new else "8Gi"):
                    break
                self.run(asyncio.sleep(0.1))
            else:
                raise AssertionError("the API server does not serve the new schema")

    @contextmanager
    def models(self) -> Iterator[None]:
        job, service = MODELS[self.version]
        with (
            mock.patch("hone_operator.snapshots.finetunejob.FineTuneJob", job),
            mock.patch("hone_operator.snapshots.inferenceservice.InferenceService", service),
        ):
            yield

    # --- requests ---

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        found: Object | None = self.run(self.api.get(resource, namespace, name))
        return found

    def list(self, resource: Resource, namespace: str) -> list[Object]:
        found: list[Object] = self.run(self.api.list(resource, namespace))
        for body in found:
            body |= {"apiVersion": resource.api_version, "kind": resource.kind}
        return found

    def create(self, resource: Resource, body: Object) -> Object:
        found: Object = self.run(self.api.create(resource, body))
        return found

    def replace(self, resource: Resource, body: Object) -> Object:
        found: Object = self.run(self.api.replace(resource, body))
        return found

    def patch(
        self, resource: Resource, namespace: str, name: str, patch: Object, manager: str = "kubectl-edit"
    ) -> None:
        path = resource.build_path(namespace, name)
        options: Any = {"params": {"fieldManager": "kubectl-edit"}, "content_type": "application/merge-patch+json"}
        self.run(self.api._call("PATCH", resource.plural, path, patch, **options))

    def delete(self, resource: Resource, body: Object) -> None:
        metadata = body["metadata"]
        self.run(self.api.delete(resource, metadata["namespace"], metadata["name"], metadata["uid"]))

    def count_writes(self) -> int:
        """Return how many writes the operator has made since it was started."""
        samples = [sample for family in self.metrics.requests.collect() for sample in family.samples]
        counted = [each for each in samples if each.name.endswith("_total") and each.labels["method"] != "GET"]
        return int(sum(each.value for each in counted))

    def namespace(self, name: str) -> str:
        self.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "namespace": ""}})
        return name

    # --- passes ---

    def settle(self, namespace: str) -> None:
        """Make passes until nothing changes. Raises Refused where the API server refuses a child."""
        for _ in range(MOST_PASSES):
            before = self._versions(namespace)
            self.observe(namespace)
            self._play(namespace)
            if self._versions(namespace) == before:
                self._check_observed(namespace)
                return
        raise AssertionError("the operator never comes to rest")

    def observe(self, namespace: str) -> None:
        """Make one pass over each object."""
        with self.models():
            self._pass(namespace)

    def _check_observed(self, namespace: str) -> None:
        """Raise AssertionError when nothing changes because the operator does not work on an object at all."""
        for resource in OWNERS:
            for body in self.list(resource, namespace):
                assert body["status"]["observedGeneration"] == body["metadata"]["generation"], body

    def _versions(self, namespace: str) -> dict[str, str]:
        kinds = (*CHILDREN, PODS, FINETUNEJOBS, INFERENCESERVICES)
        return {
            body["metadata"]["uid"]: body["metadata"]["resourceVersion"]
            for kind in kinds
            for body in self.list(kind, namespace)
        }

    def _pass(self, namespace: str) -> None:
        async def go() -> None:
            for resource in WATCHED:
                selectors = {} if resource in OWNERS else {"labelSelector": OURS}
                listing = self.api.iterate_items(resource, namespace, **selectors)
                listed = [body async for body in listing]
                for body in listed:
                    self.controller.cache.put(resource, body)
                uids = {body["metadata"]["uid"] for body in listed}
                self.controller.cache.keep_only(resource, namespace, uids, int(listing.version))
                self.controller.coverage.mark_listed(resource, "")
            for resource in OWNERS:
                for body in await self.api.list(resource, namespace):
                    key = Key(resource, namespace, body["metadata"]["name"])
                    self.controller.queue.add(key)
                    assert await self.controller.queue.get() == key
                    try:
                        await self.controller.reconciler.reconcile(key)
                    finally:
                        self.controller.queue.done(key)
                        self.controller.queue.forget(key)
                        self.controller.executor.forget(key)  # much time passes between two steps

        try:
            self.run(go())
        except ApiError as error:
            if error.is_refusal or error.status == 500:
                raise Refused(str(error)) from error
            if error.status not in (404, 409):
                raise

    # --- the simulated parts of a cluster ---

    def _play(self, namespace: str) -> None:
        owners = [
            body for kind in (FINETUNEJOBS, INFERENCESERVICES, DEPLOYMENTS, JOBS) for body in self.list(kind, namespace)
        ]
        uids = {body["metadata"]["uid"] for body in owners}
        for kind in (*CHILDREN, PODS):
            for body in self.list(kind, namespace):
                references = body["metadata"].get("ownerReferences") or []
                if references and not any(one["uid"] in uids for one in references):
                    self.delete(kind, body)
        for deployment in self.list(DEPLOYMENTS, namespace):
            self._roll_out(deployment)
        for job in self.list(JOBS, namespace):
            if job["metadata"]["name"].endswith("-prepare") and not (job.get("status") or {}).get("succeeded"):
                self._complete(job)

    def _status(self, resource: Resource, body: Object, status: Object) -> None:
        metadata = body["metadata"]
        self.run(self.api.patch(resource, metadata["namespace"], metadata["name"], {"status": status}, "status"))

    def _roll_out(self, deployment: Object) -> None:
        metadata, replicas = deployment["metadata"], deployment["spec"]["replicas"]
        progress = {
            "type": "Progressing",
            "status": "True",
            "reason": "NewReplicaSetAvailable",
            "lastTransitionTime": NOW,
            "lastUpdateTime": NOW,
        }
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), replicas)
        status = {"observedGeneration": metadata["generation"], "conditions": [progress], **counts}
        if (deployment.get("status") or {}).get("observedGeneration") != metadata["generation"]:
            self._status(DEPLOYMENTS, deployment, status)
        pods = [
            pod
            for pod in self.list(PODS, metadata["namespace"])
            if pod["metadata"]["ownerReferences"][0]["uid"] == metadata["uid"]
        ]
        for pod in pods[replicas:]:
            self.run(
                self.api._request(
                    "DELETE",
                    "pods",
                    PODS.build_path(metadata["namespace"], pod["metadata"]["name"]),
                    {"gracePeriodSeconds": 0},
                )
            )
        for index in range(len(pods), min(replicas, 1)):
            self._add_pod(deployment, index)

    def _add_pod(self, deployment: Object, index: int) -> None:
        metadata = deployment["metadata"]
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"]}
        made = self.create(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{metadata['name']}-{index}",
                    "namespace": metadata["namespace"],
                    "labels": deployment["spec"]["selector"]["matchLabels"],
                    "ownerReferences": [owner],
                },
                "spec": {"containers": [{"name": "engine", "image": "i"}]},
            },
        )
        state = {"name": "engine", "ready": True, "restartCount": 0, "image": "i", "imageID": "i"}
        state["state"] = {"running": {"startedAt": NOW}}
        conditions = [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]
        self._status(PODS, made, {"phase": "Running", "conditions": conditions, "containerStatuses": [state]})

    def _complete(self, job: Object) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = [
            {"type": type_, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": now}
            for type_ in ("SuccessCriteriaMet", "Complete")
        ]
        status = {"startTime": now, "completionTime": now, "succeeded": 1, "conditions": conditions, "ready": 0}
        self._status(JOBS, job, status | {"uncountedTerminatedPods": {}, "terminating": 0})

    # --- comparison ---

    def children(self, namespace: str) -> dict[str, Object]:
        """Return the children by kind and name, without fields that differ between objects of equal specs."""
        found = {}
        for kind in CHILDREN:
            for body in self.list(kind, namespace):
                if (body["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by") == "hone":
                    found[f"{kind.kind} {body['metadata']['name']}"] = _compared(kind, body, namespace)
        return found

    def status(self, resource: Resource, namespace: str, name: str) -> Object:
        """Return the status, without times and fields that depend on the object's history."""
        body = self.get(resource, namespace, name)
        assert body
        status = dict(body.get("status") or {})
        status.pop("observedGeneration", None)
        conditions = [
            (one["type"], one["status"], one["reason"], one["message"])
            for one in status.pop("conditions", [])
            if (one["type"], one["status"]) not in (("Suspended", "False"), ("Synced", "True"))
        ]
        return _named({**status, "conditions": sorted(map(list, conditions))}, namespace)


def differences(found: Object, expected: Object) -> str:
    """Return the lines in which the two differ, with their context."""
    texts = [json.dumps(each, indent=1, sort_keys=True).splitlines() for each in (found, expected)]
    return "\n".join(difflib.unified_diff(*texts, "found", "wanted", n=8, lineterm=""))


_BY_SERVER = ("clusterIP", "clusterIPs", "selector", "healthCheckNodePort", "volumeName")


def _compared(kind: Resource, body: Object, namespace: str) -> Object:
    metadata = body["metadata"]
    annotations = {
        name: value
        for name, value in (metadata.get("annotations") or {}).items()
        if not name.startswith(("hone.dev/", "deployment.kubernetes.io/"))
    }
    compared: Object = {"labels": metadata.get("labels") or {}, "annotations": annotations, "data": body.get("data")}
    spec = copy.deepcopy(body.get("spec") or {})
    if kind in (SERVICES, JOBS):
        headless = spec.get("clusterIP") == "None"
        ports = spec.pop("selector", None) if kind is SERVICES else spec.pop("selector", None) and None
        spec = {name: value for name, value in spec.items() if name not in _BY_SERVER} | {"of": [headless, ports]}
    if kind is JOBS:
        template = spec["template"]["metadata"]["labels"]
        for labels in (template, compared["labels"]):
            for name in [name for name in labels if "controller-uid" in name]:
                del labels[name]
    found = json.loads(json.dumps({**compared, "spec": spec}))
    if kind is JOBS:  # running Jobs keep the image of the version that made them
        found = json.loads(json.dumps(found).replace(f"{IMAGE}:0", IMAGE).replace(f"{IMAGE}:1", IMAGE))
    return _named(found, namespace)


def _named(value: Object, namespace: str) -> Object:
    found: Object = json.loads(json.dumps(value).replace(namespace, "NAMESPACE"))
    return found
