"""What others change in a child is put right, also where server-side apply alone would not. On a real API server."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from apiserver import api_server
from hone_operator.resources import (
    AUTOSCALERS,
    BUDGETS,
    CONFIGMAPS,
    DEPLOYMENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    SERVICES,
    Object,
    Resource,
)
from modelworld import World, differences

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

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
    """Make an InferenceService and its children."""
    world.create(INFERENCESERVICES, service_object(space, **spec))
    world.settle(space)


def change(world: World, space: str, **spec: Any) -> None:
    """Replace fields of the service's spec; None takes one away."""
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
    """As `kubectl set env deployment/faq SECRET=plain`."""
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
def test_an_edit_of_a_field_that_excludes_another_is_put_right(
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


def test_what_others_add_to_the_metadata_stays_when_an_edit_is_put_right(world: World, space: str) -> None:
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


def restore(world: World, space: str, resource: Resource) -> None:
    """Make a child again as a backup tool does: without owner, uid, status and writers."""
    found = world.get(resource, space, NAME)
    assert found
    world.delete(resource, found)
    metadata = {name: found["metadata"][name] for name in ("name", "namespace", "labels", "annotations")}
    body = {name: value for name, value in found.items() if name != "status"} | {"metadata": metadata}
    body |= {"apiVersion": resource.api_version, "kind": resource.kind}
    for name in ("clusterIP", "clusterIPs"):
        body["spec"].pop(name, None)
    path = resource.path(space)
    world.run(world.api._one("POST", resource.plural, path, body, params={"fieldManager": "velero-server"}))


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


def test_a_volume_that_had_no_source_gets_one(world: World, space: str) -> None:
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


def test_a_manifest_that_was_made_immutable_is_made_anew(world: World, space: str) -> None:
    body: Object = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob"}
    body["metadata"] = {"name": NAME, "namespace": space}
    body["spec"] = {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}, "resources": {"gpus": 0}}
    world.create(FINETUNEJOBS, body)
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
    world.observe(space)  # the garbage collector of `settle` would remove the child of an owner that it does not know
    status = world.status(INFERENCESERVICES, space, NAME)
    assert ["Accepted", "False", "NameConflict"] in [each[:3] for each in status["conditions"]]
    after = world.get(SERVICES, space, NAME)
    assert after
    assert copy.deepcopy(after["spec"]) == before["spec"]
