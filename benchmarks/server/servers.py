"""The compared servers, each as a process that can be frozen while another one is asked."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from hone_server.hardware import MAX_CPU_CACHE_TOKENS, PAGE_TOKENS

SECONDS_TO_READY = 600
SECONDS_TO_END = 10


@dataclass(frozen=True)
class Server:
    """A running server: its address, and its names for the base and the adapters."""

    url: str
    base: str
    adapters: list[str]
    process: subprocess.Popen[bytes]
    log: Path

    def freeze(self, stop: bool) -> None:
        """Stop all of its processes, or let them continue."""
        os.killpg(self.process.pid, signal.SIGSTOP if stop else signal.SIGCONT)

    def memory(self) -> float:
        """Return the memory of its processes, in MiB; shared memory is counted once."""
        return sum(_read_memory_bytes(pid) for pid in _list_group(self.process.pid)) / 2**20


def make_hone_command(
    model: Path, adapters: dict[str, Path], *options: str, python: Path = Path(sys.executable)
) -> tuple[list[str], str, list[str]]:
    command = [str(python), "-m", "hone_server", str(model), "--name", "base", "--host", "127.0.0.1", *options]
    for name, folder in adapters.items():
        command += ["--adapter", f"{name}={folder}"]
    return command, "base", list(adapters)


def make_transformers_command(model: Path) -> tuple[list[str], str, list[str]]:
    """Return the command of `transformers serve`, the base's name and the adapters' names.

    It serves one model, which may be an adapter on its base.
    """
    program = str(Path(sys.executable).parent / "transformers")
    command = [program, "serve", str(model), "--continuous-batching", "--device", "cpu", "--host", "127.0.0.1"]
    # As large a key-value cache as Hone's. By default it takes most of the free memory.
    command += ["--cb-block-size", str(PAGE_TOKENS), "--cb-num-blocks", str(MAX_CPU_CACHE_TOKENS // PAGE_TOKENS)]
    return command, str(model), []


def make_vllm_command(program: Path, model: Path, adapters: dict[str, Path]) -> tuple[list[str], str, list[str]]:
    command = [str(program), "serve", str(model), "--served-model-name", "base", "--host", "127.0.0.1"]
    command += ["--max-model-len", "2048", "--enable-lora", "--max-loras", str(len(adapters)), "--lora-modules"]
    return command + [f"{name}={folder}" for name, folder in adapters.items()], "base", list(adapters)


@contextmanager
def run_server(made: tuple[list[str], str, list[str]], log: Path) -> Iterator[Server]:
    """Yield the server once it is healthy. Exits with its output when it is not."""
    command, base, adapters = made
    port = _find_free_port()
    # vLLM's own settings mean nothing to the others.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=file, stderr=file, env=environment, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", base, adapters, process, log)
    try:
        wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            stop_server(server)


def stop_server(server: Server) -> None:
    server.freeze(False)
    server.process.terminate()
    try:
        server.process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:  # with continuous batching, transformers serve does not end at SIGTERM
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + SECONDS_TO_READY
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    sys.exit(f"{server.url} did not answer\n{server.log.read_text()[-3000:]}")


def _list_group(leader: int) -> list[int]:
    processes = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    return [pid for pid in processes if _is_in_group(pid, leader)]


def _is_in_group(pid: int, leader: int) -> bool:
    try:
        return os.getpgid(pid) == leader
    except ProcessLookupError:
        return False


def _read_memory_bytes(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
