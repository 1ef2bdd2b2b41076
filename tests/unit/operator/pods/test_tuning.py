"""Variables of pods with GPUs: RCCL's channels by the nodes' GPUs, and folders for compiled kernels."""

import asyncio
import copy
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from hone_operator.diagnosis.nodes import ClusterNodes, Node
from hone_operator.finetunejob import jobs
from hone_operator.finetunejob.plan import plan_finetunejob as plan_job
from hone_operator.inferenceservice.plan import plan_inferenceservice
from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api
from hone_operator.kube.pod_poller import Poller
from hone_operator.objects.resources import DEPLOYMENTS, FINETUNEJOBS, JOBS, NODES, Key, Object, Resource
from hone_operator.pods import tuning
from hone_operator.reconcile.plan import Apply, Create
from hone_operator.snapshots.reader import SnapshotReader
from observed import (
    IMAGE,
    IMAGES,
    NOW,
    PREPARED,
    finished_job,
    job_object,
    observed_job,
    observed_service,
    parsed_job,
    service_object,
    stored,
)

CHANNELS = "NCCL_MIN_NCHANNELS"
GPU = "amd.com/gpu"


def node(device_id: str | None, *, resource: str = GPU, zone: str = "a", **labels: str) -> Node:
    known = {"amd.com/gpu.device-id": device_id} if device_id else {}
    more = {f"amd.com/gpu.{name.replace('_', '-')}": value for name, value in labels.items()}
    return Node(f"{device_id}-{zone}", allocatable={resource: 8}, labels={**known, **more, "zone": zone})


MI300X, MI308X, MI210, UNKNOWN = node("74a1", cu_count="304"), node("74a2", cu_count="80"), node("740f"), node(None)
MIXED = Node("mixed", {GPU: 2}, {}, {"amd.com/gpu.device-id.74a1": "1", "amd.com/gpu.device-id.740f": "1"})


def variables(container: Object) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def trained(nodes: ClusterNodes | None, **spec: Any) -> dict[str, Any]:
    """Return the variables of the trainer of a prepared job."""
    spec = {"output": {"storage": {"accessModes": ["ReadWriteMany"]}}} | spec
    owner = job_object(status=PREPARED, **spec)
    observed = observed_job(owner, cluster=nodes)
    observed.job = None
    [job] = [a.body for a in plan_job(observed, NOW).actions if isinstance(a, Create) and a.resource is JOBS]
    return variables(job["spec"]["template"]["spec"]["containers"][0])


def deployments(nodes: ClusterNodes | None, found: Object | None = None, **spec: Any) -> list[Object]:
    """Return the Deployments that a plan applies, where `found` exists."""
    owner = service_object(**{"resources": {"gpus": 2}, **spec})
    observed = observed_service(owner, finished_job(), cluster=nodes, deployment=found)
    return [
        a.body
        for a in plan_inferenceservice(observed, NOW).actions
        if isinstance(a, Apply) and a.resource is DEPLOYMENTS
    ]


def served(nodes: ClusterNodes | None, **spec: Any) -> dict[str, Any]:
    [deployment] = deployments(nodes, **spec)
    return variables(deployment["spec"]["template"]["spec"]["containers"][0])


TWO = {"gpus": 2}


@pytest.mark.parametrize(
    ("nodes", "resources", "selector", "channels"),
    [
        ([MI300X], TWO, {}, "112"),
        ([node("74b5", cu_count="304")], TWO, {}, "112"),  # its virtual function
        ([node("74a5", cu_count="304")], {"gpus": 8}, {}, "112"),
        ([node("74a1")], TWO, {}, None),  # no label shows whether it is partitioned
        ([node("74a1", cu_count="38")], TWO, {}, None),
        ([node("74a1", cu_count="38", compute_memory_partition="spx_nps1")], TWO, {}, "112"),
        ([MI300X, node("74a1", zone="b")], TWO, {}, None),
        ([MI300X, Node("of CPUs")], TWO, {}, "112"),
        ([node("74a1", compute_memory_partition="spx_nps1")], TWO, {}, "112"),
        ([MI300X], {"gpus": 1}, {}, None),
        ([MI308X], TWO, {}, None),
        ([MI210], TWO, {}, None),
        ([node("74a0")], TWO, {}, None),  # MI300A
        ([node("75a3")], TWO, {}, None),  # MI355X
        ([node("ffff")], TWO, {}, None),
        ([UNKNOWN], TWO, {}, None),
        ([], TWO, {}, None),
        (None, TWO, {}, None),
        ([MIXED], TWO, {}, None),
        ([MI300X, MI210], TWO, {}, None),
        ([MI300X, UNKNOWN], TWO, {}, None),
        ([MI300X, node("740f", zone="b")], TWO, {"zone": "a"}, "112"),
        ([MI300X], TWO, {"zone": "b"}, None),
        ([node("74a1", compute_memory_partition="cpx_nps1")], TWO, {}, None),
        ([node("74a1", resource="amd.com/spx_nps1")], {"gpus": 2, "gpuResource": "amd.com/spx_nps1"}, {}, "112"),
        ([node("74a1", resource="amd.com/cpx_nps4")], {"gpus": 2, "gpuResource": "amd.com/cpx_nps4"}, {}, None),
    ],
)
def test_rccl_gets_more_channels_only_where_amd_recommends_them(
    nodes: list[Node] | None, resources: Object, selector: dict[str, str], channels: str | None
) -> None:
    facts = None if nodes is None else ClusterNodes(tuple(nodes))
    spec: Object = {"resources": resources, "pod": {"nodeSelector": selector}}
    assert trained(facts, **spec).get(CHANNELS) == channels
    assert served(facts, **spec).get(CHANNELS) == channels


class Server:
    """An API server with a single node."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return None

    async def iterate_items(self, resource: Resource, namespace: str, **selectors: str) -> AsyncIterator[Object]:
        if resource is NODES:
            metadata = {"name": "gpu-1", "labels": MI300X.labels}
            yield {"kind": "Node", "metadata": metadata, "status": {"allocatable": {GPU: "8"}}}


class Silent:
    """A poller that polls no pod."""

    def get_last_answer_times(self, key: Key) -> Object:
        return {}

    get_answers = get_last_answer_times


@pytest.mark.parametrize(("resources", "are_read"), [(TWO, True), ({"gpus": 1}, False), ({"gpus": 0}, False)])
def test_the_nodes_are_read_before_a_training_on_several_gpus_begins(resources: Object, are_read: bool) -> None:
    owner, cache = job_object(status=PREPARED, resources=resources), Cache()
    cache.put(FINETUNEJOBS, owner | {"metadata": owner["metadata"] | {"resourceVersion": "1"}})
    observer = SnapshotReader(cast(Api, Server()), cache, cast(Poller, Silent()), IMAGES)
    observed = asyncio.run(observer.read_finetunejob(Key(FINETUNEJOBS, "team", "faq"), owner, NOW))
    assert (observed.cluster is not None) is are_read
    if are_read:
        [job] = [a.body for a in plan_job(observed, NOW).actions if isinstance(a, Create) and a.resource is JOBS]
        assert variables(job["spec"]["template"]["spec"]["containers"][0])[CHANNELS] == "112"


def test_rccl_chooses_its_channels_between_nodes() -> None:
    facts = ClusterNodes((MI300X, node("74a1", zone="b")))
    found = trained(facts, resources={"gpus": 8, "nodes": 2})
    assert CHANNELS not in found
    assert found["TORCH_NCCL_HIGH_PRIORITY"] == "1"


def test_a_users_own_channels_stay() -> None:
    spec: Object = {"resources": TWO, "pod": {"env": [{"name": CHANNELS, "value": "32"}]}}
    for facts in (ClusterNodes((MI300X,)), ClusterNodes((MI210,))):
        assert trained(facts, **spec)[CHANNELS] == served(facts, **spec)[CHANNELS] == "32"


def test_nodes_that_come_and_go_restart_no_engine() -> None:
    of_mi300x, of_mi210 = ClusterNodes((MI300X,)), ClusterNodes((MI210,))
    for first, others in ((of_mi300x, [of_mi210, ClusterNodes(), None]), (None, [of_mi300x, of_mi210])):
        [made] = deployments(first)
        assert all(not deployments(facts, stored(made)) for facts in others)


def test_another_change_of_the_pods_brings_the_channels_of_the_nodes() -> None:
    [made] = deployments(ClusterNodes((MI300X,)))
    [changed] = deployments(ClusterNodes((MI210,)), stored(made), maxModelLen=4096)
    assert CHANNELS not in variables(changed["spec"]["template"]["spec"]["containers"][0])


def test_a_removed_field_of_an_engine_is_restored_with_any_nodes() -> None:
    [made] = deployments(ClusterNodes((MI300X,)))
    found = stored(copy.deepcopy(made))
    container = found["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [variable for variable in container["env"] if variable["name"] != CHANNELS]
    [restored] = deployments(None, found)
    assert restored["spec"]["template"] == made["spec"]["template"]


def test_compiled_kernels_lie_in_named_folders_that_the_pod_can_write() -> None:
    expected = tuning.COMPILE_CACHE_VARIABLES
    assert all(folder.startswith("/tmp/") for folder in expected.values())
    assert expected.items() <= trained(None, resources={"gpus": 1}).items()
    for name in ("vllm", "sglang", "embedded"):
        found = served(None, resources={"gpus": 1}, engine=name)
        assert expected.items() <= found.items()
        assert ("VLLM_CACHE_ROOT" in found) == (name == "vllm")
        # With it, AITER would not find the kernels that an image has compiled.
        assert "AITER_JIT_DIR" not in found


def test_without_gpus_there_are_no_such_variables() -> None:
    owner = job_object()
    made = jobs.build_train_job(owner, parsed_job(owner), IMAGE)
    found = [variables(made["spec"]["template"]["spec"]["containers"][0]), served(None, resources={"gpus": 0})]
    assert not any(tuning.COMPILE_CACHE_VARIABLES.keys() & each.keys() for each in found)


def test_the_page_names_the_folders() -> None:
    page = (Path(__file__).parents[4] / "docs/pods.md").read_text()
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| `(/tmp/\S+)` \|", page, re.M)
    found = {name: folder for names, folder in rows for name in re.findall(r"\w+", names)}
    assert found == tuning.COMPILE_CACHE_VARIABLES | tuning.VLLM_CACHE_VARIABLES
