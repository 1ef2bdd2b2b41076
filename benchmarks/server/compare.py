"""The embedded engine against `transformers serve` with continuous batching, and against vLLM if its program is given.

With `--checkout`, the engine is compared with another Hone instead.

SmolLM2-135M, greedy, streamed; 1, 8 and 32 clients ask the base and an adapter of rank 16, and 8 adapters at once.
Goals: 1.05 of the tokens a second of `transformers serve`, its time to the first token or less, 0.8 of one adapter's
tokens a second with 8 adapters. While one server is asked, the others are frozen; the order changes every round.
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parents[1] / "examples/quickstart")]

from adapters import make_adapters  # noqa: E402
from clients import Measured, measure_clients  # noqa: E402
from common import print_comparison  # noqa: E402
from model_from_pypi import kept_model  # noqa: E402
from servers import Server, make_hone_command, make_transformers_command, make_vllm_command, run_server  # noqa: E402

CLIENTS = (1, 8, 32)
ADAPTERS = 8
MANY = f"{ADAPTERS} adapters"
WARMING = 8
REQUESTS_AT_LEAST = 8
UNITS = {"rate": "tokens/s", "first": "ms to the first token, p50", "slow": "ms to the first token, p99"}
# What is asked (the base, one adapter, many), by how many clients, of which server.
Key = tuple[str, int, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", type=Path, metavar="PROGRAM", help="of vLLM for CPUs, which wants its own Python")
    parser.add_argument("--checkout", type=Path, metavar="FOLDER", help="of another Hone, after `make install` in it")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work = Path(name)
        model = kept_model()
        adapters = make_adapters(work, model, ADAPTERS)
        first = next(iter(adapters.values()))
        made = {
            "hone": make_hone_command(model, adapters),
            "transformers serve": make_transformers_command(model),
            "transformers serve, adapter": make_transformers_command(first),
        }
        if options.checkout:
            made = {
                "hone": made["hone"],
                f"hone of {options.checkout.name}": make_hone_command(
                    model, adapters, python=options.checkout / ".venv/bin/python"
                ),
            }
        if options.vllm:
            made["vLLM"] = make_vllm_command(options.vllm, model, adapters)
        servers: dict[str, Server] = {}
        for title, how in made.items():
            servers[title] = stack.enter_context(run_server(how, work / f"{title}.log"))
            servers[title].freeze(True)
        found = run_rounds(servers, options.rounds)
        print_report(found)


def list_models(title: str, server: Server) -> dict[str, list[str]]:
    """Return what can be asked of this server, and the models' names for it."""
    if title == "transformers serve, adapter":
        return {"adapter": [server.base]}
    every = {"base": [server.base]}
    if server.adapters:
        every["adapter"] = server.adapters[:1]
    if title.startswith("hone"):
        every[MANY] = server.adapters
    return every


def run_rounds(servers: dict[str, Server], count: int) -> dict[Key, list[Measured]]:
    found: dict[Key, list[Measured]] = defaultdict(list)
    for number in range(count + 1):
        for title in list(servers)[:: -1 if number % 2 else 1]:
            server = servers[title]
            server.freeze(False)
            for what, models in list_models(title, server).items():
                if number == 0:  # the first answers are slower than all later ones
                    measure_clients(server.url, models, WARMING, WARMING)
                    continue
                for clients in CLIENTS:
                    if what == MANY and clients == 1:
                        continue
                    seen = measure_clients(server.url, models, clients, max(REQUESTS_AT_LEAST, 2 * clients))
                    found[what, clients, title.removesuffix(", adapter")].append(seen)
                    print(f"{time.strftime('%X')} {title}, {what}, {clients}: {seen}", file=sys.stderr, flush=True)
            if number == count:
                print(f"{title}: {server.memory():.0f} MiB", flush=True)
            server.freeze(True)
    return found


def print_report(found: dict[Key, list[Measured]]) -> None:
    for (what, clients, title), theirs in found.items():
        if title == "hone":
            continue
        for figure, unit in UNITS.items():
            ours = [getattr(seen, figure) for seen in found[what, clients, "hone"]]
            print_comparison(
                f"{what}, {clients} clients", unit, ours, [getattr(seen, figure) for seen in theirs], title
            )
    for clients in CLIENTS[1:]:
        ratio = find_median_rate(found[MANY, clients, "hone"]) / find_median_rate(found["adapter", clients, "hone"])
        print(f"{MANY} over one adapter, {clients} clients: {ratio:.3f} of its tokens/s")


def find_median_rate(seen: list[Measured]) -> float:
    return statistics.median(one.rate for one in seen)


if __name__ == "__main__":
    main()
