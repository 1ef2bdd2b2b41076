"""After any history, children and status of an object are those of a new object with the same spec."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path as File
from typing import Any

import pytest
import yaml
from apiserver import CRDS as CRD_FILES
from apiserver import api_server
from hone_operator.kube.client import ApiError
from hone_operator.objects.resources import (
    DEPLOYMENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    JOBS,
    SERVICES,
    Object,
    Resource,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from long_matrix import is_long, sample
from modelworld import CHILDREN, Refused, World, differences
from schema_values import Path, fields, values, with_value

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

NAME = "model"
NUMBERS = itertools.count()
JOB = {"model": {"name": "example/model"}, "dataset": {"name": "example/data"}}
SERVICE = {"model": {"name": "example/model"}}
# Fields of a FineTuneJob whose changes the API server refuses, which other tests check.
IMMUTABLE = frozenset({"model", "dataset", "method", "lora", "training", "evaluation", "output"})
REPLACES = ("checkpoint", "resources", "cache", "tokenSecret", "pod")
QUEUE = {"kueue.x-k8s.io/queue-name": ["a", "b"], "kueue.x-k8s.io/priority-class": ["low"]}


def spec_schema(plural: str) -> Object:
    crd = yaml.safe_load((CRD_FILES / f"{plural}.yaml").read_text())
    found: Object = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def fields_of(plural: str, without: frozenset[str]) -> list[tuple[Path, Object]]:
    """Return the path and the schema of each field that may be edited."""
    return [(path, schema) for path, schema in fields(spec_schema(plural)) if path[0] not in without]


def edits(plural: str, without: frozenset[str]) -> st.SearchStrategy[tuple[Path, Any]]:
    """Return a strategy for a field and its new value; None: the field is removed."""
    found = fields_of(plural, without)
    of_pods = [field for field in found if field[0][0] == "pod"]
    return st.sampled_from([*found, *of_pods, *of_pods]).flatmap(
        lambda field: st.tuples(st.just(field[0]), st.none() | values(field[1], field[0][-1]))
    )


def set_fields(spec: Object, path: Path = ()) -> list[Path]:
    """Return the paths of all values that the spec sets and that are not defaults."""
    found = []
    for name, value in spec.items():
        if isinstance(value, dict):
            found += set_fields(value, (*path, name))
        if path and value not in ({}, [], "amd.com/gpu", "8Gi", "16Gi"):
            found.append((*path, name))
    return found


class Model(RuleBasedStateMachine):
    """One object that is edited in every way, and its expected children."""

    world: World
    resource: Resource
    edits: st.SearchStrategy[tuple[Path, Any]]
    # Fields that are not removed.
    keeps: frozenset[str]

    def __init__(self) -> None:
        super().__init__()
        self.space = self.world.namespace(f"edited-{next(NUMBERS)}")
        self.others: Object = {}
        self.may_replace = True
        if self.world.version:
            self.world.upgrade(0)

    @property
    def owner(self) -> Object:
        found = self.world.get(self.resource, self.space, NAME)
        assert found
        return found

    def make(self, space: str, spec: Object, metadata: Object) -> None:
        body: Object = {"apiVersion": "hone.dev/v1alpha1", "kind": self.resource.kind, "spec": spec}
        kept = {name: metadata[name] for name in ("labels", "annotations") if name in metadata}
        self.world.create(self.resource, {**body, "metadata": {"name": NAME, "namespace": space, **kept}})

    def change(self, before: Object, path: Path, value: Any) -> None:
        """Edit the object if the API server accepts it. Revert the edit if the API server refuses a child."""
        self.replace(with_value(before["spec"], path, value))
        self.settle_or_put_back(before["spec"])

    def replace(self, spec: Object) -> None:
        try:
            self.world.replace(self.resource, self.owner | {"spec": spec})
        except ApiError as error:
            if not error.is_refusal:
                raise

    def settle_or_put_back(self, spec: Object) -> None:
        try:
            self.settle()
        except Refused:
            if not self.world.get(DEPLOYMENTS, self.space, NAME):
                self.others = {}
            self.replace(spec)
            self.may_replace = True
            self.settle()

    def furnish(self, edit: Any) -> None:
        """Begin with many set fields."""
        before = self.owner
        for _ in range(8):
            path, value = edit.draw(self.edits)
            self.replace(with_value(self.owner["spec"], path, value))
        self.settle_or_put_back(before["spec"])

    def settle(self) -> None:
        before = self.running_job()
        self.world.settle(self.space)
        after = self.running_job()
        if before and after and not self.may_replace and before[1] == after[1]:
            assert before[0] == after[0], "a running Job was replaced that the spec did not change"
        self.may_replace = False

    def running_job(self) -> tuple[str, str] | None:
        """Return the uid of the training Job, and the record of fields from which it was made."""
        job = self.world.get(JOBS, self.space, f"{NAME}-train")
        return (job["metadata"]["uid"], self.made_from) if job else None

    made_from = ""

    @rule(edit=st.data())
    def edit(self, edit: Any) -> None:
        before = self.owner
        path, value = edit.draw(self.edits)
        changes = path[0] in (*REPLACES, "suspend")
        self.may_replace = self.may_replace or changes
        self.change(before, path, value)

    @rule(edit=st.data(), count=st.integers(2, 4))
    def edit_while_no_operator_runs(self, edit: Any, count: int) -> None:
        before = self.owner
        for _ in range(count):
            path, value = edit.draw(self.edits)
            self.replace(with_value(self.owner["spec"], path, value))
        self.may_replace = True
        self.world.restart()
        self.settle_or_put_back(before["spec"])

    @rule(
        name=st.sampled_from(sorted(QUEUE)), number=st.integers(0, 2), kind=st.sampled_from(["labels", "annotations"])
    )
    def label(self, name: str, number: int, kind: str) -> None:
        value = [*QUEUE[name], None, None][number]
        self.world.patch(self.resource, self.space, NAME, {"metadata": {kind: {name: value}}})
        self.settle()

    @rule()
    def restart_the_operator(self) -> None:
        self.world.restart()
        self.settle()

    @rule()
    def install_another_version(self) -> None:
        self.world.upgrade(1 - self.world.version)
        self.settle()

    @rule()
    def delete_and_make_again(self) -> None:
        before = self.owner
        self.world.delete(self.resource, before)
        self.others, self.may_replace = {}, True
        self.make(self.space, before["spec"], before["metadata"])
        self.settle()

    @rule(which=st.integers(0, 20))
    def delete_a_child(self, which: int) -> None:
        found = [(kind, body) for kind in CHILDREN for body in self.world.list(kind, self.space)]
        found = [(kind, body) for kind, body in found if body["metadata"].get("ownerReferences")]
        if not found:
            return
        kind, body = found[which % len(found)]
        self.world.delete(kind, body)
        if kind is DEPLOYMENTS:
            self.others = {}
        self.may_replace = True
        self.settle()

    def teardown(self) -> None:
        self.settle()
        owner = self.owner
        fresh = self.world.namespace(f"fresh-{next(NUMBERS)}")
        self.make(fresh, owner["spec"], owner["metadata"])
        self.world.settle(fresh)
        wanted, found = self.world.children(fresh), self.world.children(self.space)
        self.forgive(wanted, found)
        assert found == wanted, differences(found, wanted)
        assert self.world.status(self.resource, self.space, NAME) == self.world.status(self.resource, fresh, NAME)
        for space in (self.space, fresh):
            for kind in (self.resource, *CHILDREN):
                for body in self.world.list(kind, space):
                    self.world.delete(kind, body)

    def forgive(self, wanted: dict[str, Object], found: dict[str, Object]) -> None:
        """Remove allowed differences from a new object."""


class JobModel(Model):
    """A FineTuneJob."""

    resource = FINETUNEJOBS
    edits = edits("finetunejobs", IMMUTABLE)
    keeps = IMMUTABLE

    def forgive(self, wanted: dict[str, Object], found: dict[str, Object]) -> None:
        """Ignore a preparing Job that has ended."""
        for children in (wanted, found):
            children.pop(f"Job {NAME}-prepare", None)

    @initialize(gpus=st.sampled_from([0, 1]), edit=st.data())
    def begin(self, gpus: int, edit: Any) -> None:
        self.make(self.space, JOB | {"resources": {"gpus": gpus}}, {})
        self.furnish(edit)


class ServiceModel(Model):
    """An InferenceService."""

    resource = INFERENCESERVICES
    edits = edits("inferenceservices", frozenset())
    keeps = frozenset({"model"})

    @initialize(engine=st.sampled_from(["auto", "vllm"]), edit=st.data())
    def begin(self, engine: str, edit: Any) -> None:
        self.make(self.space, SERVICE | {"engine": engine}, {})
        self.furnish(edit)

    def deployment(self) -> Object | None:
        return self.world.get(DEPLOYMENTS, self.space, NAME)

    @rule()
    def restart_the_engines(self) -> None:
        """Restart the engines as `kubectl rollout restart` does."""
        if self.deployment():
            self.others = {"kubectl.kubernetes.io/restartedAt": "now"}
            template = {"metadata": {"annotations": self.others}}
            self.world.patch(DEPLOYMENTS, self.space, NAME, {"spec": {"template": template}})
            self.settle()

    @rule()
    def edit_the_deployment(self) -> None:
        if found := self.deployment():
            container = found["spec"]["template"]["spec"]["containers"][0]
            container |= {"args": ["--mine"], "env": container["env"][1:]}
            spec: Object = {"template": {"spec": {"containers": [container]}}}
            if "autoscaling" not in self.owner["spec"]:  # otherwise the autoscaler sets the number
                spec["replicas"] = 3
            self.world.patch(DEPLOYMENTS, self.space, NAME, {"spec": spec})
            self.settle()

    @rule(port=st.sampled_from([80, 99]))
    def edit_the_service(self, port: int) -> None:
        ports = [{"name": "http", "port": port, "targetPort": 1, "protocol": "TCP"}]
        spec = {"ports": ports, "selector": {"more": "x"}}
        if self.world.get(SERVICES, self.space, NAME):
            self.world.patch(SERVICES, self.space, NAME, {"spec": spec})
            self.settle()

    def forgive(self, wanted: dict[str, Object], found: dict[str, Object]) -> None:
        """Ignore fields that others added, and claims that adapters no longer need: both stay."""
        key = f"Deployment {NAME}"
        if key not in found or key not in wanted:
            return
        template, fresh = found[key]["spec"]["template"], wanted[key]["spec"]["template"]
        for name, value in self.others.items():
            assert template["metadata"]["annotations"].pop(name) == value, "what others own was undone"
        claims = claims_of(template["spec"]) - claims_of(fresh["spec"])
        pod = template["spec"]
        pod["volumes"] = [volume for volume in pod.get("volumes", []) if volume["name"] not in claims]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            mounts = container.get("volumeMounts", [])
            container["volumeMounts"] = [mount for mount in mounts if mount["name"] not in claims]
        for body in (pod, fresh["spec"]):
            for part in ("volumes", "containers", "initContainers"):
                for item in body.get(part, []):
                    for field in ("env", "volumeMounts"):
                        item[field] = in_order(item.get(field, []))
                body[part] = in_order(body.get(part, []))


def in_order(items: list[Object]) -> list[Object]:
    """Return the items in a fixed order: the order of a list with several writers depends on its history."""
    return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))


def claims_of(pod: Object) -> set[str]:
    return {volume["name"] for volume in pod.get("volumes", []) if "persistentVolumeClaim" in volume}


@pytest.fixture(scope="module")
def world(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: File = tmp_path_factory.mktemp("model")
    with api_server(folder) as server:
        server.install_crds()
        found = World(server)
        yield found
        found.close()


@pytest.mark.parametrize("machine", [JobModel, ServiceModel])
def test_children_and_status_are_those_of_a_fresh_object(world: World, machine: type[Model]) -> None:
    kind = type(machine.__name__, (machine,), {"world": world})
    phases = [Phase.generate] if not is_long() else [Phase.generate, Phase.shrink]
    examples, steps = (60, 20) if is_long() else (3, 10)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        kind, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None, phases=phases)
    )


@pytest.mark.parametrize("machine", [JobModel, ServiceModel])
def test_a_field_that_is_set_and_removed_leaves_nothing(world: World, machine: type[Model]) -> None:
    editable = sample(fields_of(machine.resource.plural, machine.keeps), machine.__name__, 20)

    @settings(max_examples=1, deadline=None, phases=[Phase.generate])
    @given(st.data())
    def check(data: Any) -> None:
        model = type(machine.__name__, (machine,), {"world": world})()
        model.make(model.space, JOB if machine is JobModel else SERVICE, {})
        model.settle()
        bare, wanted = model.owner["spec"], world.children(model.space)
        for path, schema in editable:
            model.may_replace = True
            model.replace(with_value(bare, path, data.draw(values(schema, path[-1]))))
            model.settle_or_put_back(bare)
            model.may_replace = True
            model.replace(bare)
            model.settle()
            left = world.children(model.space)
            model.forgive(wanted, left)
            assert left == wanted, f"{path}: {differences(left, wanted)}"
        model.teardown()

    check()
