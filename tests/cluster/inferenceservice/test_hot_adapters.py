"""Adapters are added, changed and removed while the engines run: no pod restarts, and no request fails."""

import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from kube import CONNECT, Cluster, Images, claim, condition, phase, pod
from processes import processes_of
from training import furnish, job, uid

Object = dict[str, Any]
ONE_THREAD = {"env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}
ENGINES = "hone.dev/inferenceservice=chat"
START_SECONDS, TRAIN_SECONDS, CHANGE_SECONDS = 240, 240, 180
# A client that queries both models repeatedly, and prints each answer that differs from the one before.
ASKER = (
    CONNECT
    + """
import json, sys, time, urllib.error, urllib.request
url = sys.argv[1]
connect(url, 80)
def ask(name):
    body = json.dumps({"model": name, "prompt": "red", "temperature": 0, "max_tokens": 12}).encode()
    request = urllib.request.Request(f"http://{url}/v1/completions", body, {"Content-Type": "application/json"})
    try:
        return 200, json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError as error:
        return 0, str(error)
last = {}
while True:
    for name in sys.argv[2:]:
        found = ask(name)
        if last.get(name) != found:
            print(json.dumps([time.time(), name, *found]), flush=True)
        last[name] = found
    time.sleep(0.1)
"""
)
ADMIN = (
    CONNECT
    + """
import sys, urllib.error, urllib.request
url = sys.argv[1]
connect(url, 80)
for method, path in [("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"), ("POST", "/adapters")]:
    for token in ["", "guessed"]:
        headers = {"Content-Type": "application/json", "X-Hone-Admin": token}
        body = b'{"lora_name": "first", "lora_path": "/nowhere"}'
        try:
            print(urllib.request.urlopen(urllib.request.Request(f"http://{url}{path}", body, headers)).status)
        except urllib.error.HTTPError as error:
            print(error.code)
"""
)


def rows(word: str) -> Object:
    data = "".join(json.dumps({"text": f"red {word} {word} {word}."}) + "\n" for _ in range(4))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": word}, "data": {"train.jsonl": data}}


def tuned(name: str, word: str) -> Object:
    """Return a FineTuneJob that learns this answer, with its adapter on the shared claim."""
    training = {"maxSteps": 12, "learningRate": 0.02, "perDeviceTrainBatchSize": 4}
    dataset = {"configMap": {"name": word, "key": "train.jsonl"}}
    output = {"claim": {"name": "artifacts"}}
    return job(name, training=training, dataset=dataset, output=output, pod=ONE_THREAD)


class Service:
    """The InferenceService `chat` with two engines, and the answers that a client receives."""

    def __init__(self, hone: Cluster, namespace: str, images: Images) -> None:
        self.hone, self.namespace, self.images = hone, namespace, images

    def serve(self, **jobs: str) -> None:
        """Serve exactly these adapters."""
        adapters = [{"name": name, "fineTuneJob": {"name": job}} for name, job in jobs.items()]
        patch = json.dumps({"spec": {"adapters": adapters}})
        self.hone.kubectl("patch", "inferenceservice", "chat", "--type=merge", "-p", patch, namespace=self.namespace)

    def loaded(self, **digests: str) -> Object:
        """Wait until the status shows exactly these adapters on both engines."""
        wanted = {name: (digest, "2/2") for name, digest in digests.items()}

        def holds(found: Object) -> bool:
            models = found.get("status", {}).get("models", [])
            return {m["name"]: (m["digest"], m["loaded"]) for m in models if m["kind"] == "adapter"} == wanted

        return self.hone.wait("inferenceservice", "chat", holds, self.namespace, timeout=CHANGE_SECONDS)

    def pods(self) -> list[tuple[str, list[int]]]:
        """Return uid and restarts of each container, by pod."""
        found = []
        for engine in self.hone.list("pods", self.namespace, ENGINES):
            status = engine["status"]
            containers = [*status["initContainerStatuses"], *status["containerStatuses"]]
            found.append((engine["metadata"]["uid"], [one["restartCount"] for one in containers]))
        return sorted(found)

    def read_answers(self, name: str) -> list[tuple[float, int, str]]:
        """Return the client's answers from this model, as they changed."""
        lines = self.hone.kubectl("logs", "asker", namespace=self.namespace).splitlines()
        said = [json.loads(line) for line in lines]
        return [(at, status, text) for at, asked, status, text in said if asked == name]

    def wait_for_answer(self, name: str, status: int, unlike: str | None = None) -> tuple[float, str]:
        """Wait until the newest answer has this status and another text. Return when it first had, and the text.

        The engines change one after the other, so for some moments old and new answers alternate.
        """
        end = time.monotonic() + CHANGE_SECONDS
        while True:
            answers = self.read_answers(name)
            new = [(at, text) for at, found, text in answers if found == status and text != unlike]
            if new and answers[-1][1:] == (status, new[0][1]):
                return new[0]
            assert time.monotonic() < end, answers
            time.sleep(0.5)

    def list_distinct_answers(self, name: str) -> set[tuple[int, str]]:
        return {(status, text) for _, status, text in self.read_answers(name)}

    def wait_until_succeeded(self, name: str) -> tuple[str, float]:
        """Return the artifact's digest, and when the FineTuneJob was reported as succeeded."""
        wait = self.hone.wait
        done = wait("finetunejob", name, condition("Succeeded"), self.namespace, timeout=TRAIN_SECONDS)
        [since] = [c["lastTransitionTime"] for c in done["status"]["conditions"] if c["type"] == "Succeeded"]
        return done["status"]["artifact"]["digest"], datetime.fromisoformat(since).timestamp()


@pytest.fixture(scope="module")
def chat(hone: Cluster, images: Images) -> Iterator[Service]:
    """Yield two engines that serve `first`, the adapter of job `one`; job `two` has succeeded as well."""
    with hone.fresh_namespace("adapters") as namespace:
        furnish(hone, images, namespace)
        hone.create(claim("artifacts"), rows("blue"), rows("grey"), rows("pink"), namespace=namespace)
        hone.create(tuned("one", "blue"), tuned("two", "grey"), namespace=namespace)
        spec = {
            "model": {"claim": {"name": "models", "path": "tiny"}},
            "adapters": [{"name": "first", "fineTuneJob": {"name": "one"}}],
            "replicas": 2,
            "resources": {"gpus": 0, "sharedMemory": "64Mi"},
            "pod": ONE_THREAD,
        }
        service = {"apiVersion": "hone.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": "chat"}}
        hone.create({**service, "spec": spec}, namespace=namespace)
        made = Service(hone, namespace, images)
        digest, _ = made.wait_until_succeeded("one")
        both = lambda found: found.get("status", {}).get("readyReplicas") == 2  # noqa: E731
        hone.wait("inferenceservice", "chat", both, namespace, timeout=START_SECONDS)
        made.loaded(first=digest)
        command = ["python3", "-c", ASKER, f"chat.{namespace}.svc", "first", "second"]
        hone.create(pod("asker", images.operator, *command), namespace=namespace)
        hone.wait("pod", "asker", phase("Running"), namespace)
        yield made


def test_adapters_are_added_changed_and_removed_in_running_engines(chat: Service) -> None:
    pods = chat.pods()
    one, _ = chat.wait_until_succeeded("one")
    two, _ = chat.wait_until_succeeded("two")
    _, old = chat.wait_for_answer("first", 200)
    chat.wait_for_answer("second", 404)

    begin = time.time()
    chat.serve(first="one", second="two")
    at, second = chat.wait_for_answer("second", 200)
    print(f"\na new adapter answers {at - begin:.1f} s after the InferenceService names it")
    assert second != old
    chat.loaded(first=one, second=two)

    chat.hone.create(tuned("three", "pink"), namespace=chat.namespace)
    chat.serve(first="three", second="two")
    three, succeeded = chat.wait_until_succeeded("three")
    at, first = chat.wait_for_answer("first", 200, unlike=old)
    print(f"a retrained adapter answers {at - succeeded:.1f} s after its FineTuneJob succeeded (a whole second)")
    chat.loaded(first=three, second=two)

    chat.serve(first="three")
    chat.loaded(first=three)
    chat.wait_for_answer("second", 404)
    assert chat.wait_for_answer("first", 200, unlike=old)[1] == first
    assert chat.list_distinct_answers("first") == {(200, old), (200, first)}
    assert chat.list_distinct_answers("second") == {(404, ""), (200, second)}
    assert chat.pods() == pods


def test_a_config_map_that_is_deleted_comes_back(chat: Service) -> None:
    before = chat.hone.wait("configmap", "chat-adapters", bool, chat.namespace)
    chat.hone.kubectl("delete", "configmap", "chat-adapters", namespace=chat.namespace)
    back = chat.hone.wait("configmap", "chat-adapters", lambda found: uid(found) != uid(before), chat.namespace)
    assert back["data"] == before["data"]


def test_clients_find_no_admin_routes(chat: Service) -> None:
    command = ["python3", "-c", ADMIN, f"chat.{chat.namespace}.svc"]
    printed = chat.hone.run_pod(pod("admin", chat.images.operator, *command), chat.namespace)
    assert printed.split() == ["404"] * 6


def test_an_engine_that_is_killed_comes_back_with_its_adapters(chat: Service) -> None:
    (killed, before), (other, _) = chat.pods()
    [pid] = processes_of(killed, "hone-server")
    os.kill(pid, signal.SIGKILL)
    [engine] = [one for one in chat.hone.list("pods", chat.namespace, ENGINES) if uid(one) == killed]
    name = engine["metadata"]["name"]

    def restarted(found: Object) -> bool:
        return bool(found["status"]["containerStatuses"][0]["restartCount"] > before[-1])

    chat.hone.wait("pod", name, restarted, chat.namespace)
    chat.hone.wait("pod", name, condition("Ready"), chat.namespace, timeout=START_SECONDS)
    digest, _ = chat.wait_until_succeeded("three")
    chat.loaded(first=digest)
    assert [one for one, _ in chat.pods()] == sorted([killed, other])
