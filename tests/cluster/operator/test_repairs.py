"""Edits of children by others are reverted, also where server-side apply alone would fail. On a real API server."""

import contextlib
import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from apiserver import api_server
from hone_operator.inferenceservice import node_drain
from hone_operator.objects.resources import (
    AUTOSCALERS,
    BUDGETS,
    CLAIMS,
    CONFIGMAPS,
    DEPLOYMENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    JOBS,
    SERVICES,
    Object,
    Resource,
)
from modelworld import Refused, World, differences

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

QUOTAS = Resource("v1", "ResourceQuota", "resourcequotas")
NUMBERS = itertools.count()
NAME = "faq"
SECRET = {"secretKeyRef": {"name": "hub", "key": "token"}}
FEW = {"minReplicas": 2, "maxReplicas": 5, "targetConcurrency": 8}
MORE = {"minReplicas": 2, "maxReplicas": 7, "targetConcurrency": 9}
RICH: Object = {
    "env": [{"name": "PLAIN", "value": "a"}, {"name": "SECRET", "valueFrom": SECRET}],
    "labels": {"team": "search"},
    "annotations": {"note": "x"},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "priorityClassName": "high",
    "volumes": [{"name": "more", "configMap": {"name": "more"}}],
}


@pytest.fixture(scope="module")
def world(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with api_server(tmp_path_factory.mktemp("repairs")) as server:
        server.install_crds()
        found = World(server)
        yield found
        found.close()


@pytest.fixture
def space(world: World) -> str:
    return world.namespace(f"repairs-{next(NUMBERS)}")


def service_object(space: str, **spec: Any) -> Object:
    merged = {"model": {"name": "example/model"}, "resources": {"gpus": 0}, "replicas": 2, **spec}
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": space},
        "spec": {name: value for name, value in merged.items() if value is not None},
    }


def serve(world: World, space: str, **spec: Any) -> None:
    """Create an InferenceService and its children."""
    world.create(INFERENCESERVICES, service_object(space, **spec))
    world.settle(space)


def change(world: World, space: str, **spec: Any) -> None:
    """Replace fields of the service's spec; None removes a field."""
    owner = world.get(INFERENCESERVICES, space, NAME)
    assert owner
    merged = owner["spec"] | spec
    owner["spec"] = {name: value for name, value in merged.items() if value is not None}
    world.replace(INFERENCESERVICES, owner)
    world.settle(space)


def pod_of(deployment: Object) -> Object:
    found: Object = deployment["spec"]["template"]["spec"]
    return found


def set_plain_env(deployment: Object) -> None:
    """Edit the Deployment like `kubectl set env deployment/faq SECRET=plain`."""
    for variable in pod_of(deployment)["containers"][0]["env"]:
        if variable["name"] == "SECRET":
            del variable["valueFrom"]
            variable["value"] = "plain"


def set_env_from_a_secret(deployment: Object) -> None:
    for variable in pod_of(deployment)["containers"][0]["env"]:
        if variable["name"] == "PLAIN":
            del variable["value"]
            variable["valueFrom"] = SECRET


def probe_by_tcp(deployment: Object) -> None:
    probe = pod_of(deployment)["containers"][0]["readinessProbe"]
    del probe["httpGet"]
    probe["tcpSocket"] = {"port": 8000}


def serve_on_another_port(deployment: Object) -> None:
    pod_of(deployment)["containers"][0]["ports"][0]["containerPort"] = 8001


def mount_the_host(deployment: Object) -> None:
    for volume in pod_of(deployment)["volumes"]:
        if volume["name"] == "tmp":
            del volume["emptyDir"]
            volume["hostPath"] = {"path": "/var/lib/x"}


def demand_all_pods(budget: Object) -> None:
    del budget["spec"]["maxUnavailable"]
    budget["spec"]["minAvailable"] = 2


@pytest.mark.parametrize(
    ("resource", "edit"),
    [
        (DEPLOYMENTS, set_plain_env),
        (DEPLOYMENTS, set_env_from_a_secret),
        (DEPLOYMENTS, probe_by_tcp),
        (DEPLOYMENTS, serve_on_another_port),
        (DEPLOYMENTS, mount_the_host),
        (BUDGETS, demand_all_pods),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_edit_of_a_field_that_excludes_another_is_reverted(
    world: World, space: str, resource: Resource, edit: Any
) -> None:
    serve(world, space, pod=RICH)
    wanted = world.children(space)
    found = world.get(resource, space, NAME)
    assert found
    edit(found)
    world.replace(resource, found)
    assert world.children(space) != wanted
    world.settle(space)
    assert world.children(space) == wanted


def test_metadata_of_others_stays_when_an_edit_is_reverted(world: World, space: str) -> None:
    serve(world, space, pod=RICH)
    found = world.get(DEPLOYMENTS, space, NAME)
    assert found
    found["metadata"]["annotations"]["theirs"] = "kept"
    found["spec"]["template"]["metadata"]["annotations"]["restartedAt"] = "now"
    set_plain_env(found)
    world.replace(DEPLOYMENTS, found)
    world.settle(space)
    found = world.get(DEPLOYMENTS, space, NAME)
    assert found
    assert found["metadata"]["annotations"]["theirs"] == "kept"
    assert found["spec"]["template"]["metadata"]["annotations"]["restartedAt"] == "now"
    assert "plain" not in [variable.get("value") for variable in pod_of(found)["containers"][0]["env"]]


UNFIT = {"matchExpressions": [{"key": "a", "operator": "In", "values": ["not a label!"]}]}
REFUSED = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [UNFIT]}}}


def test_fields_of_others_stay_when_the_api_server_refuses_a_value(world: World, space: str) -> None:
    serve(world, space)
    world.patch(DEPLOYMENTS, space, NAME, {"spec": {"minReadySeconds": 30}})
    with contextlib.suppress(Refused):
        change(world, space, pod={"affinity": REFUSED})
    change(world, space, pod={"env": [{"name": "A", "value": "b"}]})
    found = world.get(DEPLOYMENTS, space, NAME)
    assert found
    assert found["spec"]["minReadySeconds"] == 30


PORTS = [{"containerPort": 9000, "hostPort": 7000}, {"containerPort": 9001, "hostPort": 7000}]
TWICE = {"name": "side", "image": "own:1", "restartPolicy": "Always", "ports": PORTS}


def test_fields_of_others_stay_when_the_spec_itself_has_a_value_twice(world: World, space: str) -> None:
    serve(world, space)
    template = {"spec": {"containers": [{"name": "audit", "image": "own:1"}]}}
    found = world.get(DEPLOYMENTS, space, NAME)
    assert found
    pod_of(found)["containers"] += template["spec"]["containers"]
    found["spec"]["minReadySeconds"] = 30
    world.replace(DEPLOYMENTS, found)
    world.settle(space)
    with contextlib.suppress(Refused):
        change(world, space, pod={"initContainers": [TWICE]})
    change(world, space, pod={"env": [{"name": "A", "value": "b"}]})
    found = world.get(DEPLOYMENTS, space, NAME)
    assert found
    assert found["spec"]["minReadySeconds"] == 30
    assert [each["name"] for each in pod_of(found)["containers"]][1:] == ["audit"]
    assert {"name": "A", "value": "b"} in pod_of(found)["containers"][0]["env"]


def test_an_engine_that_was_moved_is_not_replaced_once_more(world: World, space: str) -> None:
    serve(world, space)
    template = {"metadata": {"annotations": {node_drain.MOVED_ANNOTATION: "faq-1"}}}
    world.run(world.api.patch(DEPLOYMENTS, space, NAME, {"spec": {"template": template}}))
    before = world.get(DEPLOYMENTS, space, NAME)
    change(world, space, replicas=3)
    after = world.get(DEPLOYMENTS, space, NAME)
    assert before
    assert after
    assert after["spec"]["replicas"] == 3
    assert after["spec"]["template"] == before["spec"]["template"]


@pytest.mark.parametrize(
    "part",
    [
        {"startupProbe": {"tcpSocket": {"port": 9}, "initialDelaySeconds": 0}},
        {"startupProbe": {"tcpSocket": {"port": 9}, "timeoutSeconds": 0, "periodSeconds": 0, "failureThreshold": 0}},
        {"ports": [{"containerPort": 9, "hostPort": 0}]},
        {"resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}}},
        {"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1000m"}}}]},
        {"volumeMounts": [{"name": "tmp", "mountPath": "/x", "readOnly": False}]},
    ],
    ids=lambda part: "+".join(part),
)
def test_a_value_that_the_api_server_stores_otherwise_is_written_once(world: World, space: str, part: Object) -> None:
    sidecar = {"name": "side", "image": "i:1", "restartPolicy": "Always", **part}
    serve(world, space, pod={"initContainers": [sidecar]})
    writes = world.count_writes()
    world.observe(space)
    assert world.count_writes() == writes


def claim_of_somebody_else(world: World, space: str) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": NAME, "namespace": space}
    world.create(CLAIMS, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})


def train(world: World, space: str) -> None:
    body: Object = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob"}
    body["metadata"] = {"name": NAME, "namespace": space}
    body["spec"] = {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}, "resources": {"gpus": 0}}
    world.create(FINETUNEJOBS, body)


def test_a_claim_of_somebody_else_stays_theirs_after_each_list(world: World, space: str) -> None:
    claim_of_somebody_else(world, space)
    train(world, space)
    for _ in range(12):
        world.observe(space)
    status = world.status(FINETUNEJOBS, space, NAME)
    assert ["Accepted", "False", "NameConflict"] in [each[:3] for each in status["conditions"]]
    assert "ChildContested" not in [each[2] for each in status["conditions"]]
    assert not world.list(JOBS, space)


@pytest.mark.parametrize("is_theirs", [False, True])
def test_no_job_is_made_while_a_quota_refuses_its_claim(world: World, space: str, is_theirs: bool) -> None:
    if is_theirs:
        claim_of_somebody_else(world, space)
    hard = {"persistentvolumeclaims": "1" if is_theirs else "0"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": space}}
    world.create(QUOTAS, quota | {"spec": {"hard": hard}})
    used = {"persistentvolumeclaims": "1" if is_theirs else "0"}
    world.run(world.api.patch(QUOTAS, space, "q", {"status": {"hard": hard, "used": used}}, "status"))
    train(world, space)
    for _ in range(4):
        with contextlib.suppress(Refused):
            world.observe(space)
    assert not world.list(JOBS, space)


def restore(world: World, space: str, resource: Resource) -> None:
    """Create a child again as a backup tool does: without owner, uid, status and managedFields."""
    found = world.get(resource, space, NAME)
    assert found
    world.delete(resource, found)
    metadata = {name: found["metadata"][name] for name in ("name", "namespace", "labels", "annotations")}
    body = {name: value for name, value in found.items() if name != "status"} | {"metadata": metadata}
    body |= {"apiVersion": resource.api_version, "kind": resource.kind}
    for name in ("clusterIP", "clusterIPs"):
        body["spec"].pop(name, None)
    path = resource.build_path(space)
    world.run(world.api._call("POST", resource.plural, path, body, params={"fieldManager": "velero-server"}))


@pytest.mark.parametrize("resource", [DEPLOYMENTS, BUDGETS, AUTOSCALERS, SERVICES], ids=lambda kind: kind.kind)
def test_fields_that_are_removed_leave_a_restored_child(world: World, space: str, resource: Resource) -> None:
    serve(world, space, pod=RICH, replicas=None, autoscaling=MORE)
    restore(world, space, resource)
    world.settle(space)
    change(world, space, pod={}, autoscaling=FEW)
    fresh = world.namespace(f"fresh-{next(NUMBERS)}")
    serve(world, fresh, autoscaling=FEW, replicas=None)
    wanted, found = world.children(fresh), world.children(space)
    assert found == wanted, differences(found, wanted)


def test_a_volume_without_a_source_gets_one(world: World, space: str) -> None:
    mounts = [{"name": "more", "mountPath": "/more"}]
    serve(world, space, pod={"volumes": [{"name": "more"}], "volumeMounts": mounts})
    change(world, space, pod={"volumes": [{"name": "more", "configMap": {"name": "more"}}], "volumeMounts": mounts})
    found = world.get(DEPLOYMENTS, space, NAME)
    assert found
    [more] = [volume for volume in pod_of(found)["volumes"] if volume["name"] == "more"]
    assert more["configMap"]["name"] == "more"
    assert "emptyDir" not in more


@pytest.mark.parametrize(("image", "policy"), [("e:latest", "Always"), ("e", "Always"), ("e:2", "IfNotPresent")])
def test_another_image_is_pulled_as_a_new_one_would_be(world: World, space: str, image: str, policy: str) -> None:
    serve(world, space, pod={"image": "e:1", "initContainers": [{"name": "first", "image": "f:latest"}]})
    change(world, space, pod={"image": image, "initContainers": [{"name": "first", "image": "f:1"}]})
    found = world.get(DEPLOYMENTS, space, NAME)
    assert found
    assert pod_of(found)["containers"][0]["imagePullPolicy"] == policy
    assert pod_of(found)["initContainers"][0]["imagePullPolicy"] == "IfNotPresent"


def test_a_manifest_that_was_made_immutable_is_created_again(world: World, space: str) -> None:
    train(world, space)
    world.settle(space)
    wanted = world.children(space)
    found = world.get(CONFIGMAPS, space, f"{NAME}-manifest")
    assert found
    found["data"] = {"finetunejob.yaml": "{}"}
    found["immutable"] = True
    world.replace(CONFIGMAPS, found)
    world.settle(space)
    assert world.children(space) == wanted


def test_a_child_of_another_products_inference_service_is_a_conflict(world: World, space: str) -> None:
    owner = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "name": NAME, "uid": "theirs"}
    spec = {"ports": [{"port": 80}], "selector": {"app": "theirs"}}
    metadata = {"name": NAME, "namespace": space, "ownerReferences": [owner | {"controller": True}]}
    before = world.create(SERVICES, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    world.create(INFERENCESERVICES, service_object(space))
    world.observe(space)  # the garbage collector of `settle` would remove the child of an unknown owner
    status = world.status(INFERENCESERVICES, space, NAME)
    assert ["Accepted", "False", "NameConflict"] in [each[:3] for each in status["conditions"]]
    after = world.get(SERVICES, space, NAME)
    assert after
    assert copy.deepcopy(after["spec"]) == before["spec"]
