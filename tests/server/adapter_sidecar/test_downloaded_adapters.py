"""Adapters of an OCI registry in a running embedded engine: the download, the sidecar and the engine as processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from go_fixtures import skip_without_programs
from hone_api.containers import ADAPTER_DOWNLOADS, ADAPTER_SIDECAR, build_module_command
from hone_trainer.push.oci_push import ArtifactPusher
from hone_trainer.remote.locations import Location
from ociserver.registry import LOGIN, RegistryServer, find_missing_program
from run_isolation import find_free_port
from short_waits import build_impatient_command

SECONDS = 120
# Several seconds in all, in which a download that is tried again is seen.
LONGEST_WAIT_SECONDS = 2.0
# What the process may hold beyond the interpreter and its libraries, for an adapter of any size.
MOST_MEMORY_BYTES = 200 * 1024**2
LARGE_BYTES = 256 * 1024**2


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """Yield a registry that requires user and password."""
    skip_without_programs(find_missing_program())
    with RegistryServer(tmp_path_factory.mktemp("registry"), has_login=True) as server:
        yield server


def push(registry: RegistryServer, name: str, folder: Path) -> str:
    """Push the files of a folder, and return the URI with a tag."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    uri = f"oci://{registry.host}/{name}:v1"
    ArtifactPusher(Location("model", uri, secret=LOGIN), print).push(files)
    return uri


class Pod:
    """The containers of a pod, with the two keys of its ConfigMap."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root, self.base, self.links = root, base, root / "downloaded/adapters"
        self.port, self.engine_port = find_free_port(), find_free_port()
        for folder in ("secrets/login", "downloaded", "served", "lists"):
            (root / folder).mkdir(parents=True)
        for key, value in LOGIN.items():
            (root / "secrets/login" / key).write_text(value)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a container's program."""
        command = [sys.executable, *build_module_command(module)[1:], *arguments]
        if module == ADAPTER_DOWNLOADS:
            command = [*build_impatient_command(module, LONGEST_WAIT_SECONDS), *arguments]
        log = (self.root / f"{module}.log").open("ab")
        environment = {**os.environ, "HF_HOME": str(self.root / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        self.processes[module] = subprocess.Popen(command, stderr=log, env=environment)
        return self.processes[module]

    def start_downloads(self) -> subprocess.Popen[bytes]:
        return self.start(
            ADAPTER_DOWNLOADS,
            f"--file={self.root}/lists/downloads.json",
            f"--links={self.links}",
            f"--failures={self.root}/downloaded/failures.json",
            f"--secrets={self.root}/secrets",
        )

    def start_engine(self) -> None:
        self.start(
            ADAPTER_SIDECAR,
            f"--file={self.root}/lists/adapters.json",
            f"--served={self.root}/served",
            f"--download-failures={self.root}/downloaded/failures.json",
            f"--port={self.port}",
            f"--engine-port={self.engine_port}",
        )
        until(lambda: (self.root / "served/admin-token").exists())
        admin = f"--admin-token-file={self.root}/served/admin-token"
        self.start("hone_server", str(self.base), "--host=127.0.0.1", f"--port={self.engine_port}", admin)

    def want(self, **uris: str) -> None:
        """Write the lists of adapters, as the operator does; the revision of a source is its name and tag."""
        adapters, downloads = [], []
        for place, (name, uri) in enumerate(uris.items()):
            revision = uri.rpartition("/")[2].replace(":", "-")
            adapters.append({"name": name, "folder": str(self.links / name), "download": revision})
            source = {"uri": uri, "endpoint": endpoint_of(uri), "secret": {"name": "login"}}
            link = str(self.links / f"{name}-{revision}")
            downloads.append({"field": f"spec.adapters[{place}]", "link": link, "source": source})
        for file, content in (("adapters", {"adapters": adapters}), ("downloads", {"downloads": downloads})):
            part = self.root / "lists" / f"{file}.part"
            part.write_text(json.dumps(content))
            part.rename(part.with_suffix(".json"))

    def report(self) -> dict[str, Any]:
        return dict(httpx.get(f"http://127.0.0.1:{self.port}/adapters").json()["adapters"])

    def wait_for(self, **loaded: bool) -> None:
        until(lambda: {name: state["loaded"] for name, state in self.report().items()} == loaded)

    def answer(self, model: str) -> str:
        body = {"model": model, "prompt": "the quick", "max_tokens": 8, "temperature": 0}
        answer = httpx.post(f"http://127.0.0.1:{self.engine_port}/v1/completions", json=body, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def log(self, module: str) -> str:
        return (self.root / f"{module}.log").read_text()

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


def endpoint_of(uri: str) -> str:
    return f"http://{uri.split('/')[2]}"


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS
    while True:
        try:
            if holds():
                return
        except (httpx.TransportError, KeyError):
            pass
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def pod(tmp_path: Path, base_folder: Path) -> Iterator[Pod]:
    """Yield a pod whose programs end with the test."""
    found = Pod(tmp_path, base_folder)
    yield found
    found.stop()


def test_adapters_of_a_registry_come_and_go_in_a_running_engine(
    pod: Pod, registry: RegistryServer, adapter_maker: Callable[..., Path], base_folder: Path
) -> None:
    uris = []
    for seed in (3, 4, 5):
        folder = adapter_maker(pod.root / f"made-{seed}", base_folder, seed=seed)
        uris.append(push(registry, f"adapters/made{seed}", folder))
    one, two, three = uris
    pod.want(faq=one)
    downloads = pod.start_downloads()
    pod.start_engine()
    engine = pod.processes["hone_server"]
    pod.wait_for(faq=True)
    first = pod.answer("faq")

    pod.want(faq=one, other=two)
    pod.wait_for(faq=True, other=True)
    assert len({pod.answer(model) for model in ("faq", "other", base_folder.name)}) == 3

    missing = f"oci://{registry.host}/adapters/late:v1"
    pod.want(late=missing, faq=one, other=two)
    until(lambda: pod.report()["late"]["error"])
    error = pod.report()["late"]["error"]
    assert error["reason"] == "ModelNotFound"
    assert error["message"].startswith(f"spec.adapters[0].uri is {missing}")
    pod.wait_for(late=False, faq=True, other=True)
    assert pod.answer("faq") == first

    pod.want(faq=missing.replace("late", "later"), other=two)  # replaced by one that fails
    until(lambda: pod.report()["faq"]["error"])
    assert pod.answer("faq") == first

    downloads.send_signal(signal.SIGKILL)
    downloads.wait()
    asked = registry.count_requests("GET /v2/adapters/made4")
    pod.want(faq=three, other=two)
    until(lambda: pod.report()["faq"]["downloading"])
    assert pod.answer("faq") == first
    pod.start_downloads()
    pod.wait_for(faq=True, other=True)
    assert pod.answer("faq") not in (first, pod.answer("other"))
    assert registry.count_requests("GET /v2/adapters/made4") == asked, "what has a link is not asked for again"

    pod.want(other=two)
    until(lambda: os.listdir(pod.links) == ["other-made4-v1"])
    until(lambda: set(pod.report()) == {"other"})
    assert engine.poll() is None
    assert LOGIN["password"] not in pod.log(ADAPTER_DOWNLOADS) + pod.log(ADAPTER_SIDECAR)


def test_an_unreachable_registry_disturbs_no_engine_and_is_reported(
    pod: Pod, registry: RegistryServer, adapter_maker: Callable[..., Path], base_folder: Path
) -> None:
    one = push(registry, "adapters/kept", adapter_maker(pod.root / "kept", base_folder, seed=6))
    two = push(registry, "adapters/added", adapter_maker(pod.root / "added", base_folder, seed=7))
    pod.want(faq=one)
    pod.start_downloads()
    pod.start_engine()
    pod.wait_for(faq=True)
    registry.kill()
    try:
        pod.want(faq=one, added=two)
        until(lambda: pod.report()["added"]["downloading"])
        until(lambda: pod.report()["added"]["error"])
        assert pod.report()["added"]["error"]["reason"] == "StoreUnreachable"
        assert pod.answer("faq")
        shutil.rmtree(pod.root / "downloaded/adapters")  # a new pod with the same cache
        pod.want(faq=one)
        until(lambda: (pod.links / "faq-kept-v1").is_dir())
        assert "using what was downloaded before" in pod.log(ADAPTER_DOWNLOADS)
    finally:
        registry.start()
    pod.want(faq=one, added=two)
    pod.wait_for(faq=True, added=True)


def test_its_memory_does_not_depend_on_the_size_of_an_adapter(
    pod: Pod, registry: RegistryServer, adapter_maker: Callable[..., Path], base_folder: Path
) -> None:
    folder = adapter_maker(pod.root / "large", base_folder, seed=8)
    with (folder / "more.safetensors").open("wb") as file:
        file.truncate(LARGE_BYTES)
    uri = push(registry, "adapters/large", folder)
    shutil.rmtree(folder)
    pod.want(large=uri)
    process = pod.start_downloads()
    until(lambda: (pod.links / "large-large-v1").is_dir())
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    assert int(status["VmHWM"].split()[0]) * 1024 < MOST_MEMORY_BYTES
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
