"""Run the core tests of trainer and engine as in a runtime image on the oldest base: `make test-oldest`.

With arguments, run these instead: `make test-oldest TESTS='tests/trainer/test_plan.py -x'`.
"""

import subprocess
import sys

from environment import ROOT, installed

CORE = [
    "tests/oldest/test_installed.py",
    "tests/trainer/test_methods.py",
    "tests/trainer/test_profile_auto.py",
    "tests/trainer/test_planning.py",
    "tests/trainer/parity/test_training.py",
    "tests/server/test_engine.py",
    "tests/server/test_api.py",
]

if __name__ == "__main__":
    with installed() as (python, variables):
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(sys.argv[1:] or CORE)]
        raise SystemExit(subprocess.run(command, cwd=ROOT, env=variables).returncode)
