"""The real vLLM, on the CPU in a pod: from FineTuneJobs to answers, with the same arguments as on GPUs."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import LOCAL
from kube import CONNECT, Cluster, Images, claim, condition, pod, run
from processes import processes_of
from service_traffic import begin_to_ask, change, count_distinct_answers, wait_until_settled
from training import because, job, uid

Object = dict[str, Any]
IMAGE_SECONDS, TRAIN_SECONDS, START_SECONDS, CHANGE_SECONDS = 900, 300, 600, 240
# vLLM's attention on CPUs does not support heads of 16.
HEADS_OF_64 = "256"
# Not one of the ranks that vLLM accepts.
RANK = 12
KEY = "not-a-secret"
# Seconds between two requests: two vLLMs on two cores must keep up.
PAUSE = 0.2
# Nothing is compiled in the pod, whose image has no compiler; 1 GiB for the key-value cache.
EAGER = ["--enforce-eager"]
ENVIRONMENT = [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"}]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %} costs $5"
TOOL: Object = {
    "type": "function",
    "function": {
        "name": "paint",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"color": {"enum": ["blue", "pink"]}},
            "required": ["color"],
            "additionalProperties": False,
        },
    },
}
# Prints the status and the answer to each request of argv[2], as JSON.
ASK = (
    CONNECT
    + """
import json, sys, urllib.error, urllib.request
url, key = sys.argv[1], sys.argv[3]
connect(url, 80)
def call(path, body=None, key=key):
    data = body and json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        text = urllib.request.urlopen(urllib.request.Request(f"http://{url}{path}", data, headers)).read()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    try:
        return 200, json.loads(text)
    except ValueError:
        return 200, text.decode()
print(json.dumps([call(*each) for each in json.loads(sys.argv[2])]))
"""
)


class Vllm:
    """The InferenceService `name` of one vLLM, and a client of it."""

    def __init__(self, hone: Cluster, namespace: str, images: Images, image: str, name: str, **spec: Any) -> None:
        """Create the service and wait until it answers."""
        self.hone, self.namespace, self.images, self.name = hone, namespace, images, name
        self._asked = 0
        common = {
            "engine": "vllm",
            "maxModelLen": 256,
            "resources": {"gpus": 0, "sharedMemory": "256Mi"},
            "extraArgs": EAGER,
            "apiKeySecret": {"name": "key", "key": "token"},
            "pod": {"image": image, "env": ENVIRONMENT},
        }
        service = {"apiVersion": "hone.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name}}
        hone.create({**service, "spec": common | spec}, namespace=namespace)
        ready, failed = condition("Available"), because("Progressing", "EngineFailed")
        hone.wait("inferenceservice", name, ready, namespace, timeout=START_SECONDS, unless=failed)

    def ask(self, *requests: list[Any]) -> list[Any]:
        """Return status and answer of each `[path, body, key]`.

        Without a body it is a GET; the default key is right.
        """
        self._asked += 1
        command = ["python3", "-c", ASK, f"{self.name}.{self.namespace}.svc", json.dumps(requests), KEY]
        client = pod(f"client-{self.name}-{self._asked}", self.images.operator, *command)
        answers: list[Any] = json.loads(self.hone.run_pod(client, self.namespace))
        return answers

    def texts(self, *models: str) -> list[str]:
        """Return each model's answer to the same prompt."""
        bodies = [{"model": name, "prompt": "red", "temperature": 0, "max_tokens": 8} for name in models]
        answers = self.ask(*(["/v1/completions", body] for body in bodies))
        assert [status for status, _ in answers] == [200] * len(models), answers
        return [answer["choices"][0]["text"] for _, answer in answers]

    def serve(self, **jobs: str) -> None:
        """Serve exactly these adapters, and wait until the status shows them as loaded, with the jobs' digests."""
        adapters = [{"name": name, "fineTuneJob": {"name": job}} for name, job in jobs.items()]
        patch = json.dumps({"spec": {"adapters": adapters}})
        self.hone.kubectl("patch", "inferenceservice", self.name, "--type=merge", "-p", patch, namespace=self.namespace)
        self.loaded(**jobs)

    def loaded(self, **jobs: str) -> None:
        wanted = {name: (self.digest(job), "1/1") for name, job in jobs.items()}

        def holds(found: Object) -> bool:
            models = found.get("status", {}).get("models", [])
            return {m["name"]: (m["digest"], m.get("loaded")) for m in models if m["kind"] == "adapter"} == wanted

        self.hone.wait("inferenceservice", self.name, holds, self.namespace, timeout=CHANGE_SECONDS)

    def digest(self, job: str) -> str:
        return trained(self.hone, self.namespace, job)

    def pod(self) -> Object:
        [found] = self.hone.list("pods", self.namespace, f"hone.dev/inferenceservice={self.name}")
        return found


@pytest.fixture(scope="module")
def image(hone: Cluster, images: Images) -> str:
    environment = {**hone.env, "HONE_TEST_REGISTRY": hone.registry}
    return run(LOCAL / "images", "vllm", env=environment, timeout=IMAGE_SECONDS).splitlines()[-1]


@pytest.fixture(scope="module")
def chat(hone: Cluster, images: Images, image: str) -> Iterator[Vllm]:
    """Yield a service of `tuned`, the adapter of job `one`, and its base. Job `two` learns another answer.

    A client queries the service all the time.
    """
    with hone.fresh_namespace("vllm") as namespace:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"token": KEY}}
        hone.create(claim("models"), claim("artifacts"), secret, namespace=namespace)
        script = (Path(__file__).parents[1] / "make_model.py").read_text()
        command = ["python3", "-c", script, "/models/tiny", HEADS_OF_64, "0"]
        hone.run_pod(pod("make", images.runtime, *command, claims={"models": "/models"}), namespace)
        for name, word in (("one", "blue"), ("two", "pink")):
            hone.create(rows(word), learning(name, word, lora={"r": RANK}), namespace=namespace)
        base, adapter = {"claim": {"name": "models", "path": "tiny"}}, {"name": "tuned", "fineTuneJob": {"name": "one"}}
        chats = {"toolCallParser": "hermes", "chatTemplate": TEMPLATE}
        made = Vllm(hone, namespace, images, image, "chat", model=base, adapters=[adapter], **chats)
        begin_to_ask(hone, images, namespace, "chat", "tuned", key=KEY, pause=PAUSE)
        yield made


def rows(word: str) -> Object:
    data = "".join(json.dumps({"text": f"red {word} {word} {word}."}) + "\n" for _ in range(4))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": word}, "data": {"train.jsonl": data}}


def learning(name: str, word: str, **spec: Any) -> Object:
    """Return a FineTuneJob that learns the answer `word` by heart."""
    common: Object = {
        "training": {"maxSteps": 12, "learningRate": 0.02, "perDeviceTrainBatchSize": 4},
        "dataset": {"configMap": {"name": word, "key": "train.jsonl"}},
        "pod": {"env": [{"name": "OMP_NUM_THREADS", "value": "1"}]},
        "output": {"claim": {"name": "artifacts"}},
    }
    return job(name, **common | spec)


def trained(hone: Cluster, namespace: str, name: str) -> str:
    """Wait for the job's artifact, and return its digest."""
    ready, failed = condition("Succeeded"), condition("Failed")
    found = hone.wait("finetunejob", name, ready, namespace, timeout=TRAIN_SECONDS, unless=failed)
    return str(found["status"]["artifact"]["digest"])


def test_vllms_own_application_asks_for_the_key_and_vllm_judges_models(
    hone: Cluster, namespace: str, image: str
) -> None:
    """This test comes first, while no vLLM runs that would occupy both cores."""
    script = (Path(__file__).parents[1] / "vllm_asked.py").read_text()
    # The present modules, under the names that they have next to the engine: the image may be older than they are.
    folder = Path(__file__).parents[3] / "server/hone_server/vllm"
    modules = [(folder / f"{name}.py").read_text() for name in ("middleware", "check")]
    copy = 'cd /tmp && printf %s "$1" >hone_gate.py && printf %s "$2" >hone_vllm.py'
    command = ["bash", "-c", f'{copy} && PYTHONPATH=/tmp exec python3 -c "$0"', script, *modules]
    told = json.loads(hone.run_pod(pod("asked", image, *command), namespace, timeout=START_SECONDS).splitlines()[-1])
    routes = told["routes"]
    assert {
        "POST /v1/completions",
        "POST /invocations",
        "POST /tokenize",
        "GET /ping",
        "GET /openapi.json",
    } <= routes.keys()
    without_key = {route: statuses[0] for route, statuses in routes.items() if statuses[0] != 401}
    assert without_key.keys() <= {"GET /health", "HEAD /health", "GET /metrics", "HEAD /metrics"}
    assert without_key.keys() >= {"GET /health", "GET /metrics"}
    with_key = {route for route, statuses in routes.items() if statuses[1] == 401}
    assert with_key == set()
    assert told["preflight"] == [200, "*"]
    checks = told["checks"]
    assert checks["architecture"].startswith("hone-check: ModelUnsupported: vLLM 0.32.0 refuses architecture: ")
    assert "NoSuchForCausalLM" in checks["architecture"]
    assert "no-such-method" in checks["quantization"]
    assert "hone-check: AdapterMismatch: Adapter faq changes embed_tokens, and vLLM" in checks["embeddings"]


def test_vllm_answers_as_the_base_and_as_what_was_trained(chat: Vllm) -> None:
    chat.loaded(tuned="one")
    (refused, _), (status, listed) = chat.ask(["/v1/models", None, "guessed"], ["/v1/models"])
    assert (refused, status) == (401, 200)
    roots = {model["id"]: model["root"] for model in listed["data"]}
    link = f"/served/adapters/tuned-{chat.digest('one').removeprefix('sha256:')[:12]}"
    assert roots == {"tiny": "/served/model", "tuned": link}
    base, tuned = chat.texts("tiny", "tuned")
    assert "blue" in tuned
    assert "blue" not in base


def test_vllm_takes_the_chat_template_and_tools_of_the_spec(chat: Vllm) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "red"}], "temperature": 0, "max_tokens": 100}
    schema = TOOL["function"]["parameters"]
    named = {"type": "json_schema", "json_schema": {"name": "paint", "schema": schema, "strict": True}}
    required = {"tools": [TOOL], "tool_choice": "required"}
    wanted: list[Object] = [{}, {"tools": [TOOL]}, required, {"response_format": named}]
    answers = chat.ask(*(["/v1/chat/completions", body | more] for more in wanted))
    assert [status for status, _ in answers] == [200] * 4, answers
    plain, _, called, formed = (answer for _, answer in answers)
    assert plain["usage"]["prompt_tokens"] == len("red costs $5"), "a token for each byte of what the template makes"
    [choice] = called["choices"]
    [call] = choice["message"]["tool_calls"][:1]
    assert call["function"]["name"] == "paint"
    assert set(json.loads(call["function"]["arguments"])) == {"color"}
    assert set(json.loads(formed["choices"][0]["message"]["content"])) == {"color"}


def test_adapters_are_added_changed_and_removed_in_the_running_vllm(chat: Vllm) -> None:
    before = chat.pod()["metadata"]["uid"]
    chat.serve(tuned="two", second="one")
    tuned, second = chat.texts("tuned", "second")
    assert ("pink" in tuned, "blue" in second) == (True, True)
    chat.serve(tuned="two")
    body = {"model": "second", "prompt": "red"}
    assert chat.ask(["/v1/completions", body])[0][0] == 404
    assert chat.pod()["metadata"]["uid"] == before
    restarts = {status["name"]: status["restartCount"] for status in chat.pod()["status"]["containerStatuses"]}
    assert restarts == {"engine": 0}
    assert count_distinct_answers(chat.hone, chat.namespace, "chat") == 2, "the adapters of both jobs"


def test_without_the_key_all_routes_that_the_running_vllm_lists_are_401(chat: Vllm) -> None:
    [(status, document)] = chat.ask(["/openapi.json"])
    assert status == 200
    paths = [path.replace("{", "").replace("}", "") for path in document["paths"]]
    assert len(paths) > 15
    asked = [*paths, "/docs", "/openapi.json", "/nowhere", "/v1/load_lora_adapter"]
    for body in (None, {"model": "tiny", "prompt": "red"}):
        answers = dict(zip(asked, chat.ask(*([path, body, "guessed"] for path in asked)), strict=True))
        opened = {path for path, (status, _) in answers.items() if status != 401}
        assert opened == ({"/health", "/metrics"} & set(paths) if body is None else set())


def test_clients_find_no_admin_routes(chat: Vllm) -> None:
    body = {"lora_name": "tuned", "lora_path": "/nowhere"}
    answers = chat.ask(["/v1/load_lora_adapter", body], ["/v1/unload_lora_adapter", body], ["/adapters", body])
    assert [status for status, _ in answers] == [404] * 3


def test_clients_notice_no_roll_out(chat: Vllm) -> None:
    hone, namespace = chat.hone, chat.namespace
    change(hone, namespace, "chat", {"pod": {"env": [*ENVIRONMENT, {"name": "CHANGED", "value": "1"}]}})
    wait_until_settled(hone, namespace, "chat", 1)
    assert count_distinct_answers(hone, namespace, "chat") == 2


def test_a_crashed_vllm_comes_back_with_its_adapters(chat: Vllm) -> None:
    """The client is stopped, since it would get errors: there is only one engine."""
    hone, namespace = chat.hone, chat.namespace
    hone.kubectl("delete", "pod", "client-chat", "--now", namespace=namespace)
    before = chat.pod()
    for pid in processes_of(uid(before), "vllm"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def restarted(found: Object) -> bool:
        return bool(found["status"]["containerStatuses"][0]["restartCount"] >= 1)

    name = before["metadata"]["name"]
    hone.wait("pod", name, restarted, namespace)
    hone.wait("pod", name, condition("Ready"), namespace, timeout=START_SECONDS)
    chat.loaded(tuned="two")
    assert "pink" in chat.texts("tuned")[0]
    assert uid(chat.pod()) == uid(before)


@pytest.mark.parametrize(
    ("kind", "word", "spec"),
    [
        ("model", "grey", {"method": "full"}),
        ("merged", "cyan", {"output": {"claim": {"name": "artifacts"}, "save": "merged"}}),
    ],
)
def test_vllm_serves_a_full_or_merged_model(chat: Vllm, image: str, kind: str, word: str, spec: Object) -> None:
    hone, namespace = chat.hone, chat.namespace
    hone.kubectl("delete", "inferenceservice", "chat", "--ignore-not-found", namespace=namespace)  # two cores
    hone.create(rows(word), learning(kind, word, **spec), namespace=namespace)
    digest = trained(hone, namespace, kind)
    served = Vllm(hone, namespace, chat.images, image, kind, model={"fineTuneJob": {"name": kind}})
    [told] = (hone.get("inferenceservice", kind, namespace) or {})["status"]["models"]
    assert (told["kind"], told["digest"]) == (kind, digest)
    [answer] = served.texts(kind)
    assert word in answer
    guessed = served.ask(
        *([path, {"model": kind, "prompt": "red"}, "guessed"] for path in ("/invocations", "/tokenize"))
    )
    assert [status for status, _ in guessed] == [401, 401]
    hone.kubectl("delete", "inferenceservice", kind, namespace=namespace)
