"""Whether weights, key-value cache and 600 MB are memory enough for the embedded engine; SmolLM2-135M. Needs root.

One engine runs in a control group with that limit, as a container with `resources.memory`, and one without any. Clients
ask both, then come prompts of many lengths. A group counts the pages of files, too, and gives them back when short.
"""

import argparse
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parents[1] / "examples/quickstart")]

from clients import measure_clients  # noqa: E402
from common import print_comparison  # noqa: E402
from hone_server.hardware import PAGE_TOKENS, compute_kv_bytes_per_token, has_bfloat16  # noqa: E402
from model_from_pypi import kept_model  # noqa: E402
from servers import Server, make_hone_command, run_server  # noqa: E402
from transformers import AutoConfig  # noqa: E402

CLIENTS, REQUESTS = 32, 64
LENGTHS = range(1, 401)
REST = 600 * 10**6
BFLOAT16 = 2
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    model = kept_model()
    with tempfile.TemporaryDirectory() as name, run_server(make_hone_command(model, {}), Path(name, "free")) as free:
        given = count_weight_bytes(model) + count_cache_bytes(model, free)
        free.freeze(True)
        with limit_memory(given + REST) as processes:
            command, base, adapters = make_hone_command(model, {})
            into = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(processes)]
            with run_server(([*into, *command], base, adapters), Path(name, "limited")) as limited:
                limited.freeze(True)
                compare_speed(limited, free, rounds)
                for title, server in (("with the limit", limited), ("without", free)):
                    server.freeze(False)
                    print_memory(f"{title}, after {CLIENTS} clients", server, given)
                    ask_lengths(server)
                    print_memory(f"{title}, after prompts of {len(LENGTHS)} lengths", server, given)
                    server.freeze(True)


def compare_speed(limited: Server, free: Server, rounds: int) -> None:
    rates: dict[str, list[float]] = {limited.url: [], free.url: []}
    for number in range(rounds + 1):
        for server in (limited, free) if number % 2 else (free, limited):
            server.freeze(False)
            rates[server.url].append(measure_clients(server.url, [server.base], CLIENTS, REQUESTS).rate)
            server.freeze(True)
    # The first answers are slower than all later ones.
    print_comparison(f"{CLIENTS} clients, limit", "tokens/s", rates[limited.url][1:], rates[free.url][1:], "no limit")


def ask_lengths(server: Server) -> None:
    for length in LENGTHS:
        # Another beginning each time, so that nothing of it is in the cache.
        body = {"model": server.base, "prompt": f"{length}" + " day" * length, "max_tokens": 1}
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status()


def print_memory(when: str, server: Server, given: int) -> None:
    """Print the engine's memory in addition to its weights and cache."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    own, mapped = (int(re.findall(rf"{field}:\s+(\d+)", status)[0]) * 1024 for field in ("RssAnon", "RssFile"))
    print(f"{when}: {(own - given) / MIB:.0f} MiB in addition to weights and cache, {mapped / MIB:.0f} MiB of files")


def count_weight_bytes(model: Path) -> int:
    """Return the bytes of the weights as the engine holds them on this CPU."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors")) // BFLOAT16 * count_item_bytes()


def count_cache_bytes(model: Path, server: Server) -> int:
    [pages] = re.findall(r"cache (\d+) pages", server.log.read_text())
    return int(pages) * PAGE_TOKENS * compute_kv_bytes_per_token(AutoConfig.from_pretrained(model), count_item_bytes())


def count_item_bytes() -> int:
    return BFLOAT16 if has_bfloat16() else 2 * BFLOAT16


@contextmanager
def limit_memory(limit: int) -> Iterator[Path]:
    """Yield the file that moves a process into a control group with this limit in bytes, in version 1 or 2."""
    root = Path("/sys/fs/cgroup/memory")
    name = "memory.limit_in_bytes"
    if not root.exists():
        root, name = root.parent, "memory.max"
    folder = root / "hone-benchmark"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(str(limit))
    print(f"limit: {limit / MIB:.0f} MiB", flush=True)
    try:
        yield folder / "cgroup.procs"
    finally:
        folder.rmdir()


if __name__ == "__main__":
    main()
