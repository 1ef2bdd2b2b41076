"""Clients get no error and no cut stream while engines are rolled out, evicted, moved, and get new weights."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kube import Cluster, Images, claim, condition
from service_traffic import begin_to_ask, change, count_distinct_answers, list_engines, pods, wait_until_settled
from tiny_model import put_model
from training import ONE_THREAD, SERVE_SECONDS, TRAIN_SECONDS, job

Object = dict[str, Any]
ADAPTER, TUNED = "tuned", ("first", "second")


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with two claims, each with a different model `tiny`.

    The jobs `first` and `second` tune the model of claim `one`.
    """
    with hone.fresh_namespace("no-gap") as namespace:
        hone.create(claim("one"), claim("two"), namespace=namespace)
        for seed, name in enumerate(("one", "two")):
            put_model(hone, images, namespace, name, seed)
        for seed, name in enumerate(TUNED):
            hone.create(*tuning(name, seed), namespace=namespace)
        yield namespace


@pytest.fixture
def asked(hone: Cluster, images: Images, lab: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the name of a service that a client queries all the time.

    `request.param`: the number of engines, and the job of its adapter.
    """
    replicas, job_name = request.param
    name = f"chat-{replicas}-{job_name or 'base'}"
    serve(hone, lab, name, replicas, job_name)
    begin_to_ask(hone, images, lab, name, ADAPTER if job_name else "tiny")
    yield name
    remove(hone, lab, name)


@pytest.mark.parametrize("asked", [(1, None)], indirect=True)
def test_with_one_engine_clients_notice_no_roll_out_and_no_move_off_a_cordoned_node(
    hone: Cluster, lab: str, asked: str
) -> None:
    change(hone, lab, asked, {"model": {"claim": {"name": "two"}}})
    wait_until_settled(hone, lab, asked, 1)

    [alone] = list_engines(hone, lab, asked)
    with pytest.raises(AssertionError, match="disruption budget"):
        evict(hone, lab, alone)
    node = hone.get("pod", alone, lab)["spec"]["nodeName"]
    hone.kubectl("cordon", node)
    try:
        hone.wait("deployment", asked, lambda found: found["status"].get("unavailableReplicas"), lab)
    finally:
        hone.kubectl("uncordon", node)
    hone.wait_gone("pod", alone, lab, timeout=SERVE_SECONDS)
    wait_until_settled(hone, lab, asked, 1)

    assert count_distinct_answers(hone, lab, asked) == 2, "each of the two models has answered, always in the same way"


@pytest.mark.parametrize("asked", [(3, None)], indirect=True)
def test_with_three_engines_clients_notice_no_eviction_and_no_roll_out(hone: Cluster, lab: str, asked: str) -> None:
    first = list_engines(hone, lab, asked)[0]
    allows_one = lambda found: found.get("status", {}).get("disruptionsAllowed")  # noqa: E731
    hone.wait("poddisruptionbudget", asked, allows_one, lab)
    evict(hone, lab, first)
    hone.wait_gone("pod", first, lab)
    wait_until_settled(hone, lab, asked, 3)
    change(hone, lab, asked, {"pod": {"env": [*ONE_THREAD["env"], {"name": "CHANGED", "value": "1"}]}})
    wait_until_settled(hone, lab, asked, 3)

    assert count_distinct_answers(hone, lab, asked) == 1


@pytest.mark.parametrize("asked", [(1, TUNED[0]), (3, TUNED[0])], indirect=True)
def test_clients_notice_no_new_digest_of_an_adapter(hone: Cluster, lab: str, asked: str) -> None:
    before = list_engines(hone, lab, asked)
    change(hone, lab, asked, {"adapters": [{"name": ADAPTER, "fineTuneJob": {"name": TUNED[1]}}]})
    loaded(hone, lab, asked, TUNED[1], f"{len(before)}/{len(before)}")
    assert list_engines(hone, lab, asked) == before
    assert count_distinct_answers(hone, lab, asked) == 2, (
        "the old weights and the new ones have answered, always in the same way"
    )


def test_with_one_engine_clients_notice_no_drain_of_its_node(
    hone: Cluster, images: Images, lab: str, two_nodes: tuple[str, str]
) -> None:
    staying, leaving = two_nodes
    hone.kubectl("cordon", staying)
    try:
        serve(hone, lab, "drained-1", 1)
    finally:
        hone.kubectl("uncordon", staying)
    assert nodes(hone, lab, "drained-1") == {leaving}
    begin_to_ask(hone, images, lab, "drained-1", "tiny", node=staying)
    drain(hone, lab, "drained-1", 1, leaving)


def test_three_engines_are_spread_over_nodes_and_clients_notice_no_drain(
    hone: Cluster, images: Images, lab: str, two_nodes: tuple[str, str]
) -> None:
    staying, leaving = two_nodes
    serve(hone, lab, "drained-3", 3)
    assert nodes(hone, lab, "drained-3") == {staying, leaving}
    begin_to_ask(hone, images, lab, "drained-3", "tiny", node=staying)
    drain(hone, lab, "drained-3", 3, leaving)


def drain(hone: Cluster, namespace: str, name: str, replicas: int, leaving: str) -> None:
    """Drain the node: its engines move to other nodes, and the client of the service gets no error."""
    command = ["drain", leaving, "--delete-emptydir-data", "--ignore-daemonsets", f"--timeout={SERVE_SECONDS}s"]
    try:
        hone.kubectl(*command, timeout=SERVE_SECONDS + 10)
        wait_until_settled(hone, namespace, name, replicas)
    finally:
        hone.kubectl("uncordon", leaving)
    assert leaving not in nodes(hone, namespace, name)
    assert count_distinct_answers(hone, namespace, name) == 1
    remove(hone, namespace, name)


def serve(hone: Cluster, namespace: str, name: str, replicas: int, job_name: str | None = None) -> None:
    """Serve the model `tiny` of claim `one`, with the adapter of the job, and wait for so many ready engines."""
    spec: Object = {
        "model": {"claim": {"name": "one", "path": "tiny"}},
        "replicas": replicas,
        "resources": {"gpus": 0, "sharedMemory": "64Mi"},
        "pod": ONE_THREAD,
    }
    if job_name:
        spec["adapters"] = [{"name": ADAPTER, "fineTuneJob": {"name": job_name}}]
    owner = {"apiVersion": "hone.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name}, "spec": spec}
    hone.create(owner, namespace=namespace)
    wait_until_settled(hone, namespace, name, replicas)


def remove(hone: Cluster, namespace: str, name: str) -> None:
    """Remove the service and its client."""
    hone.kubectl("delete", "inferenceservice", name, "--wait=false", namespace=namespace)
    hone.kubectl("delete", "pod", f"client-{name}", "--wait=false", namespace=namespace)


def loaded(hone: Cluster, namespace: str, name: str, job_name: str, count: str) -> None:
    """Wait until the job has succeeded, and the given number of engines has its adapter."""
    done = hone.wait("finetunejob", job_name, condition("Succeeded"), namespace, timeout=TRAIN_SECONDS)
    digest = done["status"]["artifact"]["digest"]

    def replaced(found: Object) -> bool:
        models = found["status"].get("models", [])
        return [(m["digest"], m.get("loaded")) for m in models if m["name"] == ADAPTER] == [(digest, count)]

    hone.wait("inferenceservice", name, replaced, namespace, timeout=SERVE_SECONDS)


def tuning(name: str, seed: int) -> list[Object]:
    """Return a FineTuneJob on the model of claim `one` that differs from the others, and its rows."""
    text = json.dumps({"text": f"ping {seed} {seed} {seed}"}) + "\n"
    rows = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"train.jsonl": 4 * text}}
    training = {"maxSteps": 8, "learningRate": 0.02, "perDeviceTrainBatchSize": 4}
    model, dataset = {"claim": {"name": "one", "path": "tiny"}}, {"configMap": {"name": name, "key": "train.jsonl"}}
    output = {"claim": {"name": "two"}}
    return [rows, job(name, model=model, dataset=dataset, training=training, output=output, pod=ONE_THREAD)]


def nodes(hone: Cluster, namespace: str, name: str) -> set[str]:
    """Return the nodes of the engines."""
    return {found["spec"]["nodeName"] for found in pods(hone, namespace, name)}


def evict(hone: Cluster, namespace: str, name: str) -> None:
    """Evict a pod as `kubectl drain` does."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    hone.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
