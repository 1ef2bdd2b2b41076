"""A log that can't be written ends no program: its reader is gone, its disk is full, or it was never open."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hone_api.artifacts.trainer_reports import TerminationMessage
from hone_api.io.terminal import make_encodable
from hone_api.reasons import INVALID_SPEC, HoneError
from hypothesis import given
from hypothesis import strategies as st

PROGRAM = """
import logging, os, sys, warnings
from hone_api.io.terminal import make_output_safe, print_line
make_output_safe(is_stdout_a_log=True)
opened = open(sys.argv[1], "w")
for number in range(3):
    print("printed", number)
    print_line("a line")
    logging.warning("logged")
    warnings.warn(f"warned {number}")
    os.system("echo from a child; echo from a child >&2")
    sys.stderr.flush()
opened.write("done")
opened.close()
sys.exit(7)
"""

LOGS = {
    "open": "",
    "a full disk": ">/dev/full 2>&1",
    "closed": ">&- 2>&-",
    "all closed": "<&- >&- 2>&-",
    "only stderr closed": "2>&-",
    "only stdout closed": ">&-",
    "read-only": ">/dev/null 2</dev/null",
}


@pytest.mark.parametrize("log", LOGS)
def test_a_program_does_its_work_and_keeps_its_exit_code(tmp_path: Path, log: str) -> None:
    result = tmp_path / "result"
    shell = f'exec "$@" {LOGS[log]}'
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", PROGRAM, str(result)]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, result.read_text()) == (7, "done")


def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    result = tmp_path / "result"
    ours, its = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(result)], stdout=its, stderr=its, timeout=60)
    os.close(its)
    assert (done.returncode, result.read_text()) == (7, "done")


def test_an_answer_that_is_lost_is_a_failure() -> None:
    program = "from hone_api.io.terminal import make_output_safe; make_output_safe(); print('answer', flush=True)"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >/dev/full', "sh", sys.executable, "-c", program], capture_output=True
    )
    assert done.returncode != 0


@given(st.text(alphabet=st.characters(codec=None), max_size=30))
def test_any_text_fits_into_a_failure_and_the_termination_message(text: str) -> None:
    failure = HoneError(INVALID_SPEC, text, remedy=text or None)
    message = TerminationMessage(outcome="Failed", reason=failure.reason.name, message=text)
    assert json.loads(message.to_bytes())["message"] == make_encodable(text)
    failure.format_message().encode()
    assert make_encodable(make_encodable(text)) == make_encodable(text)
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert make_encodable(text) == text
