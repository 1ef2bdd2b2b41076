"""Guided decoding against free text in the embedded engine: SmolLM2-135M, greedy, streamed, 1 and 8 clients.

Free answers ask nothing of their form; guided ones must follow a schema of a list of numbers, which is longer than the
answers. Goals: 0.9 of the tokens a second with 8 clients, at most 1.2 of the time to the first token. Both kinds are
asked in turn, of one server.
"""

import argparse
import signal
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parents[1] / "examples/quickstart")]

from clients import Measured, measure_clients  # noqa: E402
from common import print_comparison  # noqa: E402
from model_from_pypi import kept_model  # noqa: E402
from servers import make_hone_command, run_server  # noqa: E402

CLIENTS = (1, 8)
WARMING = 8
SCHEMA = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"type": "string", "minLength": 3}, "minItems": 64}},
    "required": ["words"],
    "additionalProperties": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "free": {},
    "guided": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "words", "schema": SCHEMA, "strict": True}}
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is ended
    found: dict[tuple[str, int], list[Measured]] = defaultdict(list)
    with (
        tempfile.TemporaryDirectory() as name,
        run_server(make_hone_command(kept_model(), {}), Path(name) / "log") as server,
    ):
        for more in KINDS.values():
            measure_clients(
                server.url, [server.base], WARMING, WARMING, more
            )  # the first answers are slower than all later ones
        for number in range(options.rounds):
            for kind in list(KINDS)[:: -1 if number % 2 else 1]:
                for clients in CLIENTS:
                    seen = measure_clients(server.url, [server.base], clients, max(8, 2 * clients), KINDS[kind])
                    found[kind, clients].append(seen)
    for clients in CLIENTS:
        for figure, unit in {"rate": "tokens/s", "first": "ms to the first token, p50"}.items():
            guided, free = ([getattr(seen, figure) for seen in found[kind, clients]] for kind in ("guided", "free"))
            print_comparison(f"{clients} clients", unit, guided, free, "free text")


if __name__ == "__main__":
    main()
