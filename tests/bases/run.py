"""Run tests as in a runtime image, on stand-ins for the default base and the oldest one: `make test-bases`.

All other tests use the newest torch, so its base gets few tests; the oldest one gets the core of trainer and engine.
With arguments, run these instead: `make test-bases TESTS='tests/trainer/memory/test_plan.py -x'`.
"""

import subprocess
import sys

from base_images import DEFAULT, OLDEST
from environment import ROOT, installed

FEW = [
    "tests/bases/test_installed.py",
    "tests/trainer/config/test_profile_auto.py",
    "tests/trainer/training/test_methods.py::test_qlora_learns_and_its_adapter_loads_on_the_base_in_4_bits_and_in_full",
    "tests/trainer/training/test_methods.py::test_a_paged_32_bit_optimizer_trains",
    "tests/server/engine/test_engine.py",
]
CORE = [
    "tests/bases/test_installed.py",
    "tests/trainer/training/test_methods.py",
    "tests/trainer/config/test_profile_auto.py",
    "tests/trainer/memory/test_planning.py",
    "tests/trainer/parity/test_training.py",
    "tests/server/engine/test_engine.py",
    "tests/server/http/test_api.py",
]

if __name__ == "__main__":
    codes = []
    for base, tests in ((DEFAULT, FEW), (OLDEST, CORE)):
        with installed(base) as (python, variables):
            print(f"on Python {base.python} with torch {base.torch}", flush=True)
            command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(sys.argv[1:] or tests)]
            environment = variables | {"HONE_BASE": base.torch}
            codes.append(subprocess.run(command, cwd=ROOT, env=environment).returncode)
    raise SystemExit(max(codes))
