"""A client in the cluster that queries a service all the time, and the state of the service's engines."""

import json
import time
from typing import Any

from kube import CONNECT, Cluster, Images, condition, phase, pod
from training import SERVE_SECONDS

Object = dict[str, Any]
# A slow machine answers fewer requests than the client could begin: without a limit they would wait until they fail.
MOST_AT_ONCE = 50
MANY, MANY_SECONDS = 200, 240
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
                    while len(flying) >= MOST_AT_ONCE:
                        await asyncio.sleep(0.05)
                    flying.add(begun)
                    group.create_task(one(client, ask, begun))
                    begun += 1
                    await asyncio.sleep(float(pause))
            ended = min(flying, default=begun)
            print(json.dumps({"errors": errors, "begun": begun, "ended": ended, "texts": texts}), flush=True)
asyncio.run(main())
""".replace("MOST_AT_ONCE", str(MOST_AT_ONCE))
)


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
    while read_traffic_results(hone, namespace, name) is None:
        assert time.monotonic() < end
        time.sleep(0.5)


def read_traffic_results(hone: Cluster, namespace: str, name: str) -> Object | None:
    """Return the results of the service's client so far; None without any."""
    lines = hone.kubectl("logs", f"client-{name}", "--tail=1", namespace=namespace)
    return json.loads(lines) if lines else None


def count_distinct_answers(hone: Cluster, namespace: str, name: str) -> int:
    """Return how many different answers the client has received, and check that none was an error or cut.

    Before that, wait until all present requests and many more have been answered.
    """
    end = time.monotonic() + MANY_SECONDS
    enough = None
    while True:
        so_far = read_traffic_results(hone, namespace, name)
        assert so_far is not None
        assert so_far["errors"] == []
        enough = so_far["begun"] + MANY if enough is None else enough
        if so_far["ended"] >= enough:
            return len(so_far["texts"])
        assert time.monotonic() < end, so_far
        time.sleep(1)


def wait_until_settled(hone: Cluster, namespace: str, name: str, replicas: int) -> None:
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
            and len(list_engines(hone, namespace, name)) == replicas
        )

    hone.wait("inferenceservice", name, complete, namespace, timeout=SERVE_SECONDS)


def list_engines(hone: Cluster, namespace: str, name: str) -> list[str]:
    return [found["metadata"]["name"] for found in pods(hone, namespace, name)]


def pods(hone: Cluster, namespace: str, name: str) -> list[Object]:
    return hone.list("pods", namespace, f"hone.dev/inferenceservice={name}")


def change(hone: Cluster, namespace: str, name: str, spec: Object) -> None:
    patch = json.dumps({"spec": spec})
    hone.kubectl("patch", "inferenceservice", name, "--type=merge", f"--patch={patch}", namespace=namespace)
