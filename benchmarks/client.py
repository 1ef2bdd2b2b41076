"""Seconds to import the Python client in a new process that has started. Goal: under 0.5, without torch."""

import argparse
import subprocess
import sys

from common import format_spread

STATEMENTS = ("import hone", "from hone import Client, FineTuneJob, InferenceService", "from hone import *")
MEASURE = """
import sys, time
began = time.perf_counter()
{statement}
print(time.perf_counter() - began, "torch" in sys.modules)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for statement in STATEMENTS:
        seconds, loads_torch = [], set()
        for _ in range(options.rounds):
            command = [sys.executable, "-c", MEASURE.format(statement=statement)]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            seconds.append(float(found[0]))
            loads_torch.add(found[1])
        print(f"{statement}: {format_spread(seconds)} s, loads torch: {' or '.join(sorted(loads_torch))}")


if __name__ == "__main__":
    main()
