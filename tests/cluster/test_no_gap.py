"""Clients get no error and no cut stream while engines are rolled out, evicted, moved, and get new weights."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube import CONNECT, Cluster, Images, claim, condition, phase, pod
from test_main_path import ONE_THREAD, SERVE_SECONDS, TRAIN_SECONDS
from training import job

Object = dict[str, Any]
ADAPTER, TUNED = "tuned", ("first", "second")
MANY, MANY_SECONDS = 200, 120
# Runs in the cluster, so that its requests pass kube-proxy and the Service like those of any client. The openai package
# is in no image; it uses httpx with these limits, whose fork httpx2 the runtime image has for the hub. No request is
# retried. After every 20 requests it prints all results so far: `begun` counts the requests, and those before `ended`
# have all been answered.
CLIENT = (
    CONNECT
    + """
import asyncio, collections, json, sys, time, urllib.parse, httpx2
url, model, key, pause = sys.argv[1:]
connect(urllib.parse.urlsplit(url).hostname, 80)
body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": "ping"}], "ignore_eos": True}
errors, texts, flying, begun = [], collections.Counter(), set(), 0
async def whole(client):
    answer = await client.post("/chat/completions", json=body | {"max_tokens": 8})
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    assert choice["finish_reason"] == "length", choice
    texts[choice["message"]["content"]] += 1
async def streamed(client):
    events = []
    async with client.stream("POST", "/chat/completions", json=body | {"max_tokens": 64, "stream": True}) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            events += [line.removeprefix("data: ")] if line else []
    assert events[-1] == "[DONE]", events[-2:]
    assert [json.loads(e)["choices"][0]["finish_reason"] for e in events[:-1]][-1] == "length", events[-2:]
async def one(client, ask, number):
    try:
        await ask(client)
    except Exception as error:
        errors.append(f"{time.strftime('%X')} {ask.__name__}: {error!r}")
    flying.remove(number)
async def main():
    global begun
    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
    headers = {"Authorization": f"Bearer {key}"}
    client = httpx2.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=60)
    async with client, asyncio.TaskGroup() as group:
        while True:
            for _ in range(10):
                for ask in (whole, streamed):
                    flying.add(begun)
                    group.create_task(one(client, ask, begun))
                    begun += 1
                    await asyncio.sleep(float(pause))
            ended = min(flying, default=begun)
            print(json.dumps({"errors": errors, "begun": begun, "ended": ended, "texts": texts}), flush=True)
asyncio.run(main())
"""
)


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with two claims, each with a different model `tiny`.

    The jobs `first` and `second` tune the model of claim `one`.
    """
    with hone.fresh_namespace("no-gap") as namespace:
        hone.create(claim("one"), claim("two"), namespace=namespace)
        script = (Path(__file__).parent / "make_model.py").read_text()
        claims = {"one": "/one", "two": "/two"}
        make = "import sys\nscript = sys.argv[1]\nfor seed, claim in enumerate(['one', 'two']):\n"
        make += "    sys.argv[1:] = [f'/{claim}/tiny', '64', str(seed)]\n    exec(script)\n"
        hone.run_pod(pod("make", images.runtime, "python3", "-c", make, script, claims=claims), namespace)
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
    settled(hone, lab, asked, 1)

    [alone] = engines(hone, lab, asked)
    with pytest.raises(AssertionError, match="disruption budget"):
        evict(hone, lab, alone)
    node = hone.get("pod", alone, lab)["spec"]["nodeName"]
    hone.kubectl("cordon", node)
    try:
        hone.wait("deployment", asked, lambda found: found["status"].get("unavailableReplicas"), lab)
    finally:
        hone.kubectl("uncordon", node)
    hone.wait_gone("pod", alone, lab, timeout=SERVE_SECONDS)
    settled(hone, lab, asked, 1)

    assert noticed(hone, lab, asked) == 2, "each of the two models has answered, always in the same way"


@pytest.mark.parametrize("asked", [(3, None)], indirect=True)
def test_with_three_engines_clients_notice_no_eviction_and_no_roll_out(hone: Cluster, lab: str, asked: str) -> None:
    first = engines(hone, lab, asked)[0]
    evict(hone, lab, first)
    hone.wait_gone("pod", first, lab)
    settled(hone, lab, asked, 3)
    change(hone, lab, asked, {"pod": {"env": [*ONE_THREAD["env"], {"name": "CHANGED", "value": "1"}]}})
    settled(hone, lab, asked, 3)

    assert noticed(hone, lab, asked) == 1


@pytest.mark.parametrize("asked", [(1, TUNED[0]), (3, TUNED[0])], indirect=True)
def test_clients_notice_no_new_digest_of_an_adapter(hone: Cluster, lab: str, asked: str) -> None:
    before = engines(hone, lab, asked)
    change(hone, lab, asked, {"adapters": [{"name": ADAPTER, "fineTuneJob": {"name": TUNED[1]}}]})
    loaded(hone, lab, asked, TUNED[1], f"{len(before)}/{len(before)}")
    assert engines(hone, lab, asked) == before
    assert noticed(hone, lab, asked) == 2, "the old weights and the new ones have answered, always in the same way"


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
        settled(hone, namespace, name, replicas)
    finally:
        hone.kubectl("uncordon", leaving)
    assert leaving not in nodes(hone, namespace, name)
    assert noticed(hone, namespace, name) == 1
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
    settled(hone, namespace, name, replicas)


def remove(hone: Cluster, namespace: str, name: str) -> None:
    """Remove the service and its client."""
    hone.kubectl("delete", "inferenceservice", name, "--wait=false", namespace=namespace)
    hone.kubectl("delete", "pod", f"client-{name}", "--wait=false", namespace=namespace)


def loaded(hone: Cluster, namespace: str, name: str, job_name: str, count: str) -> None:
    """Wait until the job has succeeded, and the given number of engines has its adapter."""
    done = hone.wait("finetunejob", job_name, condition("Succeeded"), namespace, timeout=TRAIN_SECONDS)
    digest = done["status"]["artifact"]["digest"]

    def replaced(found: Object) -> bool:
        [told] = [model for model in found["status"]["models"] if model["name"] == ADAPTER]
        return (told["digest"], told.get("loaded")) == (digest, count)

    hone.wait("inferenceservice", name, replaced, namespace, timeout=SERVE_SECONDS)


def tuning(name: str, seed: int) -> list[Object]:
    """Return a FineTuneJob on the model of claim `one` that differs from the others, and its rows."""
    text = json.dumps({"text": f"ping {seed} {seed} {seed}"}) + "\n"
    rows = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"train.jsonl": 4 * text}}
    training = {"maxSteps": 8, "learningRate": 0.02, "perDeviceTrainBatchSize": 4}
    model, dataset = {"claim": {"name": "one", "path": "tiny"}}, {"configMap": {"name": name, "key": "train.jsonl"}}
    output = {"claim": {"name": "two"}}
    return [rows, job(name, model=model, dataset=dataset, training=training, output=output, pod=ONE_THREAD)]


def begin_to_ask(
    hone: Cluster,
    images: Images,
    namespace: str,
    name: str,
    model: str,
    *,
    key: str = "none",
    pause: float = 0.05,
    node: str | None = None,
) -> None:
    """Start the client of the service `name`, and wait for its first results.

    `pause`: seconds between the beginnings of two requests.
    """
    command = ["python3", "-c", CLIENT, f"http://{name}.{namespace}.svc/v1", model, key, str(pause)]
    client = pod(f"client-{name}", images.runtime, *command)
    if node:
        client["spec"]["nodeName"] = node
    hone.create(client, namespace=namespace)
    hone.wait("pod", f"client-{name}", condition("Ready"), namespace, unless=phase("Failed"))
    end = time.monotonic() + MANY_SECONDS
    while met(hone, namespace, name) is None:
        assert time.monotonic() < end
        time.sleep(0.5)


def met(hone: Cluster, namespace: str, name: str) -> Object | None:
    """Return the results of the service's client so far; None without any."""
    lines = hone.kubectl("logs", f"client-{name}", "--tail=1", namespace=namespace)
    return json.loads(lines) if lines else None


def noticed(hone: Cluster, namespace: str, name: str) -> int:
    """Return how many different answers the client has received, and check that none was an error or cut.

    Before that, wait until all present requests and many more have been answered.
    """
    end = time.monotonic() + MANY_SECONDS
    enough = None
    while True:
        so_far = met(hone, namespace, name)
        assert so_far is not None
        assert so_far["errors"] == []
        enough = so_far["begun"] + MANY if enough is None else enough
        if so_far["ended"] >= enough:
            return len(so_far["texts"])
        assert time.monotonic() < end, so_far
        time.sleep(1)


def settled(hone: Cluster, namespace: str, name: str, replicas: int) -> None:
    """Wait until the given number of engines of the present spec is ready, and the earlier ones are gone."""

    def complete(found: Object) -> bool:
        status = found.get("status", {})
        of_now = (
            status.get("observedGeneration") == found["metadata"]["generation"]
            and status.get("readyReplicas") == replicas
        )
        progress = [c for c in status.get("conditions", []) if c["type"] == "Progressing"]
        return (
            of_now
            and [c["reason"] for c in progress] == ["Complete"]
            and len(engines(hone, namespace, name)) == replicas
        )

    hone.wait("inferenceservice", name, complete, namespace, timeout=SERVE_SECONDS)


def engines(hone: Cluster, namespace: str, name: str) -> list[str]:
    return [found["metadata"]["name"] for found in pods(hone, namespace, name)]


def nodes(hone: Cluster, namespace: str, name: str) -> set[str]:
    """Return the nodes of the engines."""
    return {found["spec"]["nodeName"] for found in pods(hone, namespace, name)}


def pods(hone: Cluster, namespace: str, name: str) -> list[Object]:
    return hone.list("pods", namespace, f"hone.dev/inferenceservice={name}")


def change(hone: Cluster, namespace: str, name: str, spec: Object) -> None:
    patch = json.dumps({"spec": spec})
    hone.kubectl("patch", "inferenceservice", name, "--type=merge", f"--patch={patch}", namespace=namespace)


def evict(hone: Cluster, namespace: str, name: str) -> None:
    """Evict a pod as `kubectl drain` does."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    hone.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
