"""The command of a module whose transfers wait shorter between attempts: half a minute in all is long for a test."""

import sys

CODE = """
import runpy, sys
from hone_trainer.remote import transfers
transfers.LONGEST_WAIT_SECONDS = float(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def build_impatient_command(module: str, longest_wait_seconds: float) -> list[str]:
    """Return the command, to which arguments are added."""
    return [sys.executable, "-c", CODE, str(longest_wait_seconds), module]
