"""Tokens a second: hone-server against `transformers serve` with continuous batching. Goal: at least 1.0.

Both serve the same model on the same threads, one at a time being asked; the order changes every round.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from common import compare, make_model
from openai import OpenAI

NEW_TOKENS = 64
SECONDS_TO_READY = 180
PROMPTS = [f"Tell me about number {number}, and why anyone should care about it." for number in range(8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16, help="requests a round and server")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = make_model(Path(name) / "model")
        ports = {"hone": _free_port(), "transformers": _free_port()}
        bin_folder = Path(sys.executable).parent
        commands = {
            "hone": [sys.executable, "-m", "hone_server", folder, "--host", "127.0.0.1", "--name", folder],
            "transformers": [bin_folder / "transformers", "serve", folder, "--continuous-batching", "--device", "cpu"],
        }
        logs = {kind: Path(name) / f"{kind}.log" for kind in commands}
        servers = {kind: _start([*words, "--port", str(ports[kind])], logs[kind]) for kind, words in commands.items()}
        try:
            clients = {}
            for kind, server in servers.items():
                _wait(server, f"http://127.0.0.1:{ports[kind]}/health", logs[kind])
                clients[kind] = OpenAI(base_url=f"http://127.0.0.1:{ports[kind]}/v1", api_key="none", timeout=300)
                _tokens_per_second(clients[kind], str(folder), 8, 8)  # warm-up
            for parallel in (1, 8):
                rates: dict[str, list[float]] = {kind: [] for kind in clients}
                for number in range(options.rounds):
                    for kind in sorted(clients, reverse=bool(number % 2)):
                        rates[kind].append(_tokens_per_second(clients[kind], str(folder), parallel, options.requests))
                what = f"{parallel} client{'s' if parallel > 1 else ''}"
                compare(what, "tokens/s", rates["hone"], rates["transformers"], "transformers serve")
        finally:
            for server in servers.values():
                _stop(server)


def _tokens_per_second(client: OpenAI, model: str, parallel: int, requests: int) -> float:
    def ask(number: int) -> int:
        reply = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}],
            temperature=0,
            max_tokens=NEW_TOKENS,
        )
        if not reply.usage or not reply.usage.completion_tokens:
            sys.exit(f"no tokens in the reply {reply}")
        return reply.usage.completion_tokens

    started = time.monotonic()
    with ThreadPoolExecutor(parallel) as pool:
        tokens = sum(pool.map(ask, range(requests)))
    return tokens / (time.monotonic() - started)


def _start(words: list[object], log: Path) -> subprocess.Popen[bytes]:
    with log.open("w") as file:
        environment = dict(os.environ, HF_HUB_OFFLINE="1")
        return subprocess.Popen([str(word) for word in words], stdout=file, stderr=file, env=environment)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_READY
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(url, timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    sys.exit(f"{url} did not answer\n{log.read_text()[-3000:]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:  # with continuous batching, transformers serve does not end at SIGTERM
        server.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
