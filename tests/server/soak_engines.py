"""Engines that a test can kill and restart at their address, like a kubelet: the embedded engine, and vLLM.

vLLM runs as in a pod: with the operator's arguments and variables, behind `hone_gate`, and next to the adapter sidecar,
which loads its adapters again after each start. The sidecar is not killed.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from hone_api.layout import ADMIN_HEADER, ADMIN_TOKEN
from hone_operator.inferenceservice.plan import plan_inferenceservice
from hone_operator.objects.resources import DEPLOYMENTS
from hone_operator.reconcile.plan import Apply
from observed import NOW, finished_job, observed_service, service_object
from run_isolation import find_free_port

TOKEN = "t0ken-of-the-test"
LARGEST_RANK = 64
CONTEXT = 2048
# vLLM's key-value cache: so small that the first requests touch all of it, and that some requests have to wait.
CACHE_BYTES = 64 << 20


@dataclass
class Engine:
    """A server at an address.

    `several`: fields of a request for several greedy answers. `sidecar_url`: of the sidecar next to it, which may miss.
    """

    port: int
    command: list[str]
    environment: dict[str, str]
    log: Path
    token_file: Path
    metrics: str = "hone"
    several: dict[str, Any] = field(default_factory=dict)
    sidecar_url: str | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | self.environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def is_ready(self) -> bool:
        """Return whether a pod of this engine would be ready."""
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-20_000:]
        urls = [f"{self.url}/health"] + ([f"{self.sidecar_url}/ready"] if self.sidecar_url else [])
        try:
            return all(httpx.get(url, timeout=10).status_code == 200 for url in urls)
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Kill its processes, like the end of a container."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def models(self) -> dict[str, tuple[str, str | None]]:
        cards = httpx.get(f"{self.url}/v1/models", timeout=60).json()["data"]
        return {card["id"]: (card["root"], card.get("digest")) for card in cards}

    def admin(self, action: str, **body: object) -> httpx.Response:
        headers = {ADMIN_HEADER: self.token_file.read_text()}
        return httpx.post(f"{self.url}/v1/{action}_lora_adapter", json=body, headers=headers, timeout=300)

    def load(self) -> dict[str, float]:
        """Return the resources in use: running and waiting requests, the cache of all models, and open connections."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        used = {
            name: sum(float(line.split()[-1]) for line in lines if line.startswith(f"{self.metrics}:{name}{{"))
            for name in names
        }
        return used | {"connections": self._connections()}

    def _connections(self) -> int:
        assert self.process is not None
        count = 0
        for file in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                count += os.readlink(file).startswith("socket:")
            except FileNotFoundError:
                continue
        return count

    def memory(self) -> dict[str, int]:
        """Return the KiB of main memory of each of its processes."""
        assert self.process is not None
        first = psutil.Process(self.process.pid)
        found = [first, *first.children(recursive=True)]
        return {f"{process.name()}-{process.pid}": process.memory_info().rss // 1024 for process in found}


def make_embedded(folder: Path, base: Path, artifact: Path, legal: Path) -> Engine:
    """Return the embedded engine with the adapters `support`, an artifact, and `legal`, a PEFT folder."""
    token = folder / "token"
    token.write_text(TOKEN)
    port = find_free_port()
    command = [sys.executable, "-m", "hone_server", str(artifact), "--claim", f"models={base.parent}"]
    command += ["--adapter", f"legal={legal}", "--admin-token-file", str(token)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    return Engine(port, command, {}, folder / "log", token)


def make_vllm(folder: Path, environment: Path, base: Path) -> Engine:
    """Return vLLM, whose adapters the sidecar loads. `environment`: where vLLM is installed."""
    port, served = find_free_port(), folder / "served"
    container = make_container(base.name)
    replaced = {"/served/model": str(base), "8000": str(port)}
    words = [replaced.get(word, word) for word in container["args"]]
    variables = {
        variable["name"]: variable["value"].replace("/served", str(served))
        for variable in container["env"]
        if "value" in variable
    }
    variables |= {"PATH": f"{environment}/bin:{os.environ['PATH']}", "TMPDIR": str(folder), "HOME": str(folder)}
    command = [f"{environment}/bin/vllm", *container["command"][1:], *words, "--host", "127.0.0.1"]
    several = {"temperature": 1, "top_k": 1}  # it refuses several answers at temperature 0
    token = served / ADMIN_TOKEN
    return Engine(port, command, variables, folder / "log", token, metrics="vllm", several=several)


def make_container(base: str) -> dict[str, Any]:
    """Return the container that the operator makes for vLLM with a model of a claim and an adapter."""
    spec: dict[str, Any] = {
        "engine": "vllm",
        "model": {"claim": {"name": "models", "path": base}},
        "adapters": [{"name": "support", "fineTuneJob": {"name": "support"}}],
        "maxModelLen": CONTEXT,
        "resources": {"gpus": 0},
        "extraArgs": ["--enforce-eager", "--dtype=float32", f"--kv-cache-memory-bytes={CACHE_BYTES}"],
    }
    job = finished_job("support", model={"claim": {"name": "models", "path": base}})
    actions = plan_inferenceservice(observed_service(service_object(**spec), job), NOW).actions
    [deployment] = [action.body for action in actions if isinstance(action, Apply) and action.resource is DEPLOYMENTS]
    container: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


def start_sidecar(folder: Path, engine: Engine, adapters: list[dict[str, str]]) -> subprocess.Popen[bytes]:
    """Start the adapter sidecar of an engine, which then is ready only when it has these adapters."""
    file, port = folder / "adapters.json", find_free_port()
    file.write_text(json.dumps({"adapters": adapters}))
    command = [
        sys.executable,
        "-m",
        "hone_server.adapter_sidecar.main",
        f"--file={file}",
        f"--served={engine.token_file.parent}",
    ]
    command += [f"--engine-port={engine.port}", f"--port={port}", f"--max-rank={LARGEST_RANK}"]
    engine.sidecar_url = f"http://127.0.0.1:{port}"
    with (folder / "sidecar.log").open("ab") as log:
        return subprocess.Popen(command, stderr=log)
