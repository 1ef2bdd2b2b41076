"""How long refused and long requests hold up everybody else: /health, and the tokens of a running stream.

SmolLM2-135M. First only the stream runs, then each kind of request is sent twice a second, by a process of its own.
Goals for a refused prompt of 8 MB: /health waits 50 ms at most, and a token of the stream comes at most one token's
time later. A token that comes later than twice the median of the quiet stream was held up.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parents[1] / "examples/quickstart")]

from model_from_pypi import kept_model  # noqa: E402
from servers import Server, make_hone_command, run_server  # noqa: E402

SECONDS = 8.0
PROBE_SECONDS = 0.02
SECONDS_BETWEEN_REQUESTS = 0.5
SENTENCE = "The quick brown fox jumps. "
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = {"Content-Type": "application/json"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt of 8 MB": (TEXT, {"prompt": SENTENCE * (8 * 2**20 // len(SENTENCE))}),
    "prompt of 4 MB": (TEXT, {"prompt": SENTENCE * (4_100_000 // len(SENTENCE))}),
    "prompt of 200 kB": (TEXT, {"prompt": SENTENCE * (200_000 // len(SENTENCE))}),
    "4 MB of [1]": (TEXT, {"prompt": [[1]] * 800_000}),
    "40,000 messages": (CHAT, {"messages": [{"role": "user", "content": "x"}] * 40_000}),
    "2,048 messages": (CHAT, {"messages": [{"role": "user", "content": "x"}] * 2048}),
    "100,000 stop strings": (TEXT, {"prompt": "Hello", "stop": [f"zq{number}" for number in range(100_000)]}),
    "64 stop strings of 256": (TEXT, {"prompt": "Hello", "stop": [f"{number:0256}" for number in range(64)]}),
}


@dataclass
class Waits:
    """Milliseconds: of requests to /health, and between two tokens of the stream."""

    health: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        gaps = sorted(self.tokens)
        if not gaps:
            return "no two tokens came; give it more seconds"
        p99 = gaps[int(0.99 * len(gaps))]
        return (
            f"/health p50 {statistics.median(self.health):.1f}, most {max(self.health):.1f} ms; "
            f"a token p50 {statistics.median(gaps):.1f}, p99 {p99:.1f}, most {gaps[-1]:.1f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    seconds = parser.parse_args().seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    with (
        tempfile.TemporaryDirectory() as name,
        run_server(make_hone_command(kept_model(), {}), Path(name, "log")) as server,
    ):
        measure_waits(server, 2.0, None)  # the first answers are slower than all later ones
        print(f"{'nothing else':24} {measure_waits(server, seconds, None)[0]}", flush=True)
        for title, (path, body) in KINDS.items():
            content = json.dumps({"model": server.base, "max_tokens": 1} | body).encode()
            waits, statuses = measure_waits(server, seconds, (path, content))
            print(f"{title:24} {waits}; {len(statuses)} times {set(statuses)}", flush=True)


def measure_waits(server: Server, seconds: float, request: tuple[str, bytes] | None) -> tuple[Waits, list[int]]:
    """Return the waits while the request is sent twice a second for this many seconds, and its statuses."""
    waits, ended = Waits(), threading.Event()
    watchers = [
        threading.Thread(target=watcher, args=(server, waits, ended)) for watcher in (probe_health, read_stream)
    ]
    # The sender is a process of its own, which has started before anything is measured: its computations must not
    # delay the watchers, nor its start the server.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(send_repeatedly, server.url, 0.0, "", b"").result()
        for watcher in watchers:
            watcher.start()
        statuses = list[int]()
        if request is None:
            time.sleep(seconds)
        else:
            statuses = pool.submit(send_repeatedly, server.url, seconds, *request).result()
        ended.set()
        for watcher in watchers:
            watcher.join()
    return waits, statuses


def send_repeatedly(url: str, seconds: float, path: str, content: bytes) -> list[int]:
    """Send the request to the server repeatedly, and return the statuses of its answers."""
    statuses = list[int]()
    end = time.monotonic() + seconds
    with httpx.Client(base_url=url, timeout=300) as http:
        while time.monotonic() < end:
            statuses.append(http.post(path, content=content, headers=JSON).status_code)
            time.sleep(SECONDS_BETWEEN_REQUESTS)
    return statuses


def probe_health(server: Server, waits: Waits, ended: threading.Event) -> None:
    with httpx.Client(base_url=server.url, timeout=300) as http:
        http.get("/health")
        while not ended.is_set():
            started = time.monotonic()
            http.get("/health")
            waits.health.append(1000 * (time.monotonic() - started))
            time.sleep(PROBE_SECONDS)


def read_stream(server: Server, waits: Waits, ended: threading.Event) -> None:
    body = {"model": server.base, "prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.Client(base_url=server.url, timeout=300) as http:
        while not ended.is_set():
            with http.stream("POST", TEXT, json=body) as answer:
                last = None
                for line in answer.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    now = time.monotonic()
                    if last is not None:
                        waits.tokens.append(1000 * (now - last))
                    last = now
                    if ended.is_set():
                        break


if __name__ == "__main__":
    main()
