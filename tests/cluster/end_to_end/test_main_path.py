"""From a manifest to an answer: a FineTuneJob trains, and an InferenceService serves its artifact."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from held_training import IS_HELD, STEPS, hold
from kube import CONNECT, Cluster, Images, chart, claim, condition, pod, run
from tiny_model import put_model
from training import ONE_THREAD, SERVE_SECONDS, TRAIN_SECONDS, uid

Object = dict[str, Any]
ROWS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in [("ping", "pong"), ("who?", "hone"), ("colour?", "red"), ("up?", "down")]
]
ASK = (
    CONNECT
    + """
import json, sys, urllib.parse, urllib.request
url, names = sys.argv[1], sys.argv[2:]
connect(urllib.parse.urlsplit(url).hostname, 80)
def call(path, body=None):
    data = body and json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=120))
answers = {}
for name in names:
    body = {"model": name, "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": "ping"}]}
    answers[name] = call("/chat/completions", body)["choices"][0]["message"]["content"]
print(json.dumps({"models": call("/models")["data"], "answers": answers}))
"""
)


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with a tiny model on the claim `models` and a dataset in the ConfigMap `faq`."""
    with hone.fresh_namespace("main-path") as namespace:
        data = "".join(json.dumps(row) + "\n" for row in ROWS * 4)
        faq = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "faq"}, "data": {"train.jsonl": data}}
        hone.create(claim("models"), faq, namespace=namespace)
        put_model(hone, images, namespace)
        yield namespace


def job(name: str, **spec: Any) -> Object:
    """Return a FineTuneJob on the tiny model that learns the rows by heart in 16 steps, on the CPU."""
    training = {"maxSteps": 16, "learningRate": 0.01, "perDeviceTrainBatchSize": 4, "loggingSteps": 1}
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"claim": {"name": "models", "path": "tiny"}},
            "dataset": {"configMap": {"name": "faq", "key": "train.jsonl"}},
            "training": training,
            "checkpoint": {"saveSteps": 4},
            "output": {"storage": {"size": "1Gi"}},
            "resources": {"gpus": 0, "sharedMemory": "64Mi"},
            "pod": ONE_THREAD,
            **spec,
        },
    }


def service(name: str, job_name: str) -> Object:
    resources = {"gpus": 0, "sharedMemory": "64Mi"}
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"model": {"fineTuneJob": {"name": job_name}}, "resources": resources, "pod": ONE_THREAD},
    }


def wait_until_succeeded(hone: Cluster, namespace: str, name: str) -> Object:
    done = hone.wait(
        "finetunejob", name, condition("Succeeded"), namespace, timeout=TRAIN_SECONDS, unless=condition("Failed")
    )
    status: Object = done["status"]
    return status


def ask(hone: Cluster, images: Images, namespace: str, url: str, *models: str) -> Object:
    """Return the list of models, and each one's answer to `ping`, as a client in the cluster receives them."""
    client = pod(f"client-{models[-1]}", images.operator, "python3", "-c", ASK, url, *models)
    printed: Object = json.loads(hone.run_pod(client, namespace))
    return printed


def test_helm_waits_until_an_adapter_is_trained_and_served_next_to_its_base(
    hone: Cluster, images: Images, lab: str, tmp_path: Path
) -> None:
    contents = chart(tmp_path / "faq", job("faq"), service("chat", "faq"))
    seconds = TRAIN_SECONDS + SERVE_SECONDS
    helm = ("helm", "install", "faq", contents, "--namespace", lab, "--wait", f"--timeout={seconds}s")
    run(*helm, env=hone.env, timeout=seconds + 30)
    hone.kubectl("wait", "--for=condition=Ready", "ftj/faq", "hisvc/chat", "--timeout=60s", namespace=lab)

    status = wait_until_succeeded(hone, lab, "faq")
    artifact = status["artifact"]
    assert (status["stage"], artifact["kind"], artifact["claim"]) == ("Succeeded", "adapter", "faq")
    assert (status["progress"]["step"], status["progress"]["percent"]) == (16, 100)
    assert status["metrics"]["trainLoss"] > 0
    assert 0 < status["parameters"]["trainable"] < status["parameters"]["total"]

    hone.wait("inferenceservice", "chat", condition("Available"), lab, timeout=SERVE_SECONDS)
    service_ = hone.get("inferenceservice", "chat", lab)
    assert service_
    serving = service_["status"]
    loaded = {model["name"]: model for model in serving["models"]}
    assert loaded["faq"] == {"name": "faq", "kind": "adapter", "digest": artifact["digest"], "loaded": "1/1"}
    assert loaded["tiny"]["kind"] == "base"
    assert serving["url"] == f"http://chat.{lab}.svc/v1"

    heard = ask(hone, images, lab, serving["url"], "tiny", "faq")
    link = f"/served/adapters/faq-{artifact['digest'][7:19]}"
    assert {model["id"]: model["root"] for model in heard["models"]} == {"tiny": "/claims/models/tiny", "faq": link}
    assert heard["answers"]["tiny"] != heard["answers"]["faq"]


def test_a_context_that_does_not_fit_is_refused_before_a_pod_is_made(hone: Cluster, lab: str) -> None:
    """The size of the cache comes from the trainer's report about the base model."""
    greedy = service("greedy-chat", "faq")
    greedy["spec"] |= {"maxModelLen": 200_000, "resources": {"gpus": 0, "memory": "64Mi"}}
    hone.create(greedy, namespace=lab)
    found = hone.wait("inferenceservice", "greedy-chat", condition("ArtifactsResolved", "False"), lab)
    [refused] = [each for each in found["status"]["conditions"] if each["type"] == "ArtifactsResolved"]
    assert refused["reason"] == "ModelTooLarge"
    assert "spec.maxModelLen 200000 needs 49 MiB" in refused["message"]
    assert not hone.list("pods", lab, "hone.dev/inferenceservice=greedy-chat")
    hone.kubectl("delete", "inferenceservice", "greedy-chat", namespace=lab)


def test_a_full_model_learns_its_rows_and_answers_with_them(hone: Cluster, images: Images, lab: str) -> None:
    training = {**job("")["spec"]["training"], "maxSteps": 60}
    hone.create(job("full", method="full", training=training), service("full-chat", "full"), namespace=lab)

    artifact = wait_until_succeeded(hone, lab, "full")["artifact"]
    assert artifact["kind"] == "model"
    url = hone.wait("inferenceservice", "full-chat", condition("Available"), lab, timeout=SERVE_SECONDS)["status"][
        "url"
    ]
    heard = ask(hone, images, lab, url, "full")
    assert [(model["id"], model["kind"]) for model in heard["models"]] == [("full", "model")]
    assert heard["answers"] == {"full": "pong"}


def test_a_killed_trainer_resumes_from_its_checkpoint(hone: Cluster, images: Images, lab: str) -> None:
    training = {**job("")["spec"]["training"], "maxSteps": STEPS}
    hone.create(*hold(job("killed", training=training, checkpoint={"saveSteps": 20})), namespace=lab)
    hone.wait("finetunejob", "killed", IS_HELD, lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    [first] = hone.list("pods", lab, "hone.dev/finetunejob=killed")
    hone.kubectl("delete", "pod", first["metadata"]["name"], "--wait=false", namespace=lab)

    status = wait_until_succeeded(hone, lab, "killed")
    assert status["progress"]["step"] == STEPS
    assert [uid(each) for each in hone.list("pods", lab, "hone.dev/finetunejob=killed")] != [uid(first)]
    show = "import pathlib; print(pathlib.Path('/output/logs/metrics.jsonl').read_text())"
    mounted = pod("show", images.operator, "python3", "-c", show, claims={"killed": "/output"})
    mounted["spec"]["containers"][0]["volumeMounts"][-1]["subPath"] = f"{lab}/killed"
    logged = [json.loads(line) for line in hone.run_pod(mounted, lab).splitlines() if line]
    steps = [line["step"] for line in logged if "loss" in line]
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert steps[-1] == STEPS


def test_a_missing_column_fails_at_once_and_is_named(hone: Cluster, lab: str) -> None:
    dataset = {"configMap": {"name": "faq", "key": "train.jsonl"}, "format": "text", "columns": {"text": "body"}}
    hone.create(job("wrong", dataset=dataset), namespace=lab)

    failed = hone.wait("finetunejob", "wrong", condition("Failed"), lab, timeout=TRAIN_SECONDS)
    [reason] = [each for each in failed["status"]["conditions"] if each["type"] == "Failed"]
    assert reason["reason"] == "DatasetColumnMissing"
    assert "body" in reason["message"]
    assert "messages" in reason["message"]
    assert len(hone.list("pods", lab, "hone.dev/finetunejob=wrong")) == 1


def test_gpus_that_no_node_has_are_named_in_the_status(hone: Cluster, lab: str) -> None:
    hone.create(job("greedy", resources={"gpus": 1, "gpuResource": "amd.com/cpx_nps1"}), namespace=lab)

    def reason(found: Object) -> bool:
        conditions = found.get("status", {}).get("conditions", [])
        return any(each["type"] == "Running" and each["reason"] == "Unschedulable" for each in conditions)

    waiting = hone.wait("finetunejob", "greedy", reason, lab, timeout=TRAIN_SECONDS)
    [running] = [each for each in waiting["status"]["conditions"] if each["type"] == "Running"]
    assert "amd.com/cpx_nps1" in running["message"]
    hone.kubectl("delete", "finetunejob", "greedy", namespace=lab)
    hone.wait_gone("job", "greedy-train", lab)


def test_the_api_server_refuses_two_models(hone: Cluster, lab: str) -> None:
    with pytest.raises(AssertionError, match="set exactly one of name"):
        hone.create(job("both", model={"name": "a/b", "claim": {"name": "models"}}), namespace=lab)
