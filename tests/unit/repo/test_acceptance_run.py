"""The acceptance run: its steps' processes, its report after every step, and what is kept out of it."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from acceptance import __main__ as run
from acceptance import machine, redaction, report, runner
from acceptance.catalogue import STEPS, Step
from acceptance.context import Context
from acceptance.runner import make_environment, read_result, run_step
from hone_api.gpucheck.facts import Device, Torch

HERE = Path(__file__).parents[1]
SECRET = "s3cret-value"
NO_TORCH: dict[str, Any] = {"unusable": "", "vendor": "none", "gpus": []}

RunOne = Callable[..., dict[str, Any]]


@pytest.fixture
def run_one(tmp_path: Path) -> RunOne:
    """Run a step of acceptance_steps."""

    def run_it(name: str, seconds: int = 300) -> dict[str, Any]:
        environ = dict(os.environ) | {"PYTHONPATH": str(HERE), "HF_TOKEN": SECRET, "SHOWN": SECRET}
        step = Step(name, name, f"acceptance_steps:{name}", seconds)
        return run_step(step, Context("cpu", "none", 0, tmp_path / "work"), tmp_path / "logs", environ)

    return run_it


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_step_that_returns_has_passed(run_one: RunOne) -> None:
    found = run_one("succeed")
    assert (found["status"], found["reason"], found["logTail"]) == ("passed", "", [])
    assert found["figures"] == {"device": "cpu", "hub": "1", "token": None, "shown": ["***"]}


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("fail", "failed", "it does not hold, says ***"),
        ("lack", "not run", "there is none here"),
        ("raise_other", "failed", "KeyError: 'lost'"),
        ("die", "failed", "its process ended with signal 9 and wrote no result"),
        ("exit_early", "failed", "its process ended with exit code 3 and wrote no result"),
    ],
)
def test_however_a_step_ends_its_result_says_why(run_one: RunOne, name: str, status: str, reason: str) -> None:
    found = run_one(name)
    assert (found["status"], found["reason"]) == (status, reason)


def test_a_step_is_ended_at_its_limit(run_one: RunOne) -> None:
    found = run_one("hang", 1)
    assert (found["status"], found["reason"]) == ("failed", "it took longer than its limit of 1 s")


def test_no_process_of_a_step_outlives_it(run_one: RunOne, tmp_path: Path) -> None:
    assert run_one("leave")["status"] == "passed"
    assert not is_running(int((tmp_path / "work/left").read_text()))


def test_a_process_that_can_not_be_ended_fails_its_step(run_one: RunOne, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "END_SECONDS", 0.0)
    monkeypatch.setattr(runner, "find_marked", lambda mark: [2**22 + 1])  # no process has so large a number
    found = run_one("succeed")
    assert found["status"] == "failed"
    assert "its processes 4194305 can't be ended" in found["reason"]


def test_secrets_are_in_no_log(run_one: RunOne, tmp_path: Path) -> None:
    found = run_one("fail")
    assert found["logTail"] == ["what went before ***"]
    assert SECRET not in (tmp_path / "logs/fail.log").read_text()


def test_a_step_gets_no_secrets_and_no_gpu_where_the_cpu_stands_in(tmp_path: Path) -> None:
    environ = {"HF_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x", "TOKENIZERS_PARALLELISM": "true", "PATH": "/bin"}
    on_cpu = make_environment(Context("cpu", "none", 0, tmp_path), environ)
    on_gpu = make_environment(Context("gpu", "amd", 1, tmp_path), environ)
    assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} & (on_cpu.keys() | on_gpu.keys())
    assert on_cpu["TOKENIZERS_PARALLELISM"] == "true"
    assert on_cpu["HIP_VISIBLE_DEVICES"] == on_cpu["CUDA_VISIBLE_DEVICES"] == "-1"
    assert "HIP_VISIBLE_DEVICES" not in on_gpu


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a {SECRET} b", "a *** b"),
        ("by http://me:pass@proxy:3128/ here", "by http://***@proxy:3128/ here"),
        ("the token hf_abcdefghijkl and Bearer abc.def", "the token *** and Bearer ***"),
        ("/home/ann/work and /home/anna", "~/work and /home/anna"),
        ("a short value is ab", "a short value is ab"),
    ],
)
def test_what_is_sent_back_is_redacted(text: str, expected: str) -> None:
    environ = {"HF_TOKEN": SECRET, "OTHER_PASSWORD": "ab", "HOME": "/home/ann"}
    assert redaction.redact(text, environ) == expected


@pytest.mark.parametrize(
    "name",
    "HF_TOKEN WANDB_API_KEY AWS_SECRET_ACCESS_KEY KAGGLE_KEY OPENAI_KEY NGC_KEY AZURE_STORAGE_KEY SSH_KEY_1 GITHUB_PAT "
    "MYSQL_PWD DB_PASS SENTRY_DSN AZURE_STORAGE_CONNECTION_STRING AZURE_SAS SESSION_COOKIE GPG_PASSPHRASE".split(),
)
def test_a_variable_that_may_hold_a_secret_stays_out_of_steps_and_report(name: str) -> None:
    environ = {name: SECRET, "PATH": "/bin"}
    assert redaction.find_secrets(environ) == {name: SECRET}
    assert SECRET not in redaction.redact(f"it prints {SECRET}", environ)


@pytest.mark.parametrize(
    "name",
    "PATH PWD OLDPWD HOME HIP_VISIBLE_DEVICES HSA_XNACK TOKENIZERS_PARALLELISM KEYBOARD PYTHONPATH NCCL_DEBUG LANG "
    "PYTORCH_ALLOC_CONF XDG_DATA_DIRS SIGNAL PATTERN TERM".split(),
)
def test_a_variable_that_steps_need_is_passed_on(name: str) -> None:
    assert redaction.find_secrets({name: "value-of-it"}) == {}


@pytest.mark.parametrize(
    "text",
    [
        "github_pat_11ABCDEFG0aBcDeFgHiJkL",
        "gho_16C7e42F292c6912E7710c838347Ae178B4a",
        "glpat-abcdefghijklmnop",
        "AKIAIOSFODNN7EXAMPLE",
        "https://b.s3.amazonaws.com/m?X-Amz-Signature=abcdef0123",
        "https://a.blob.core.windows.net/m?sv=1&sig=abc%2Bdef",
    ],
)
def test_a_credential_that_can_be_recognized_is_redacted(text: str) -> None:
    found = redaction.redact(f"GET {text} 200", {})
    assert found.startswith("GET ")
    assert found.endswith("*** 200")


def test_a_result_that_was_cut_short_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "result").write_text('{"status": "pass')
    assert read_result(tmp_path / "result", 0, 5)["status"] == "failed"


def run_with(monkeypatch: pytest.MonkeyPatch, folder: Path, answers: dict[str, Any], **facts: Any) -> tuple[int, Any]:
    """Run all steps with results that are given by name, or raised; return the exit code and the report."""

    def answer(step: Step, *_: Any) -> dict[str, Any]:
        found = answers.get(step.name, "passed")
        if isinstance(found, BaseException):
            raise found
        return run._not_run("why" if found != "passed" else "") | {"status": found}

    monkeypatch.setattr(run, "run_step", answer)
    monkeypatch.setattr(machine, "collect_facts", lambda _: {"torch": NO_TORCH | facts.pop("torch", {})})
    code = run.main(["--output", str(folder), *facts.pop("options", [])])
    return code, json.loads((folder / "report.json").read_text())


AMD: dict[str, Any] = {"vendor": "amd", "gpus": [{"name": "AMD Instinct MI300X"}]}


def test_a_failed_step_stops_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, found = run_with(monkeypatch, tmp_path, {"lora": "failed", "full": OSError("no space")}, torch=AMD)
    assert code == 1
    assert found["counts"] == {"passed": len(STEPS) - 2, "failed": 2, "not run": 0}
    assert found["complete"]
    [row] = [row for row in found["rows"] if "neither was available" in row["text"]]
    assert [claim["status"] for claim in row["claims"]] == ["failed", "checked", "checked"]


def test_steps_without_their_models_and_rows_are_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, found = run_with(monkeypatch, tmp_path, {"inputs": OSError("no space")}, torch=AMD)
    assert code == 1
    results = {step["name"]: (step["status"], step["reason"]) for step in found["steps"]}
    assert results["inputs"][0] == "failed"
    assert [name for name, (status, _) in results.items() if status == "passed"] == [
        name for name in run.NEEDS_NO_INPUTS if name != "inputs"
    ]
    assert results["lora"][0] == "not run"
    assert "inputs makes, and that step did not pass: it could not be started: OSError: no space" in results["lora"][1]
    [row] = [row for row in found["rows"] if "neither was available" in row["text"]]
    assert [claim["status"] for claim in row["claims"]] == ["not run", "not run", "checked"]


def test_an_interrupted_run_leaves_its_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, found = run_with(monkeypatch, tmp_path, {"qlora": KeyboardInterrupt()}, torch=AMD)
    assert code == 130
    assert not found["complete"]
    results = {step["name"]: (step["status"], step["reason"]) for step in found["steps"]}
    assert results["full"] == ("passed", "")
    assert results["qlora"] == ("not run", "it was interrupted")
    assert results["levers"] == ("not run", "it was not reached")
    assert "has not ended" in (tmp_path / "report.html").read_text()


def test_the_report_is_there_before_and_after_every_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = []
    monkeypatch.setattr(report, "write_report", lambda folder, document: written.append(document["counts"]["passed"]))
    monkeypatch.setattr(run, "run_step", lambda *_: run._not_run("") | {"status": "passed"})
    context = Context("gpu", "amd", 1, tmp_path)
    assert run.run_all(context, STEPS, {}, tmp_path, "") == 0
    assert written == [0, *(count for number in range(len(STEPS)) for count in (number, number + 1)), len(STEPS)]


def test_a_report_that_can_not_be_written_at_the_end_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*_: Any) -> None:
        raise OSError("No space left on device")

    ran: list[str] = []
    monkeypatch.setattr(report, "write_report", fill)
    monkeypatch.setattr(
        run, "run_step", lambda step, *_: ran.append(step.name) or run._not_run("") | {"status": "passed"}
    )
    assert run.run_all(Context("gpu", "amd", 1, tmp_path), STEPS, {}, tmp_path, "") == run.FAILED
    assert ran == [step.name for step in STEPS]
    printed = capsys.readouterr()
    assert "could not be written: No space left on device" in printed.err
    assert "Send back" not in printed.out


def test_a_report_that_is_left_behind_names_the_step_that_ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left: list[Any] = []

    def answer(step: Step, *_: Any) -> dict[str, Any]:
        document = json.loads((tmp_path / "report.json").read_text())
        left.append((step.name, [each["name"] for each in document["steps"] if each["reason"] == run.UNENDED]))
        return run._not_run("") | {"status": "passed"}

    monkeypatch.setattr(run, "run_step", answer)
    assert run.run_all(Context("gpu", "amd", 1, tmp_path), STEPS, {}, tmp_path, "") == 0
    assert left == [(step.name, [step.name]) for step in STEPS]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_session_interrupts_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)

    def answer(step: Step, *_: Any) -> dict[str, Any]:
        signal.raise_signal(number)
        raise AssertionError("the signal was not handled")

    monkeypatch.setattr(run, "run_step", answer)
    monkeypatch.setattr(machine, "collect_facts", lambda _: {"torch": NO_TORCH | AMD})
    assert run.main(["--output", str(tmp_path)]) == run.INTERRUPTED
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["steps"][0]["reason"] == "it was interrupted"
    assert not list(tmp_path.glob("work-*"))
    assert signal.getsignal(number) == before


def test_without_a_gpu_that_works_no_step_pretends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, found = run_with(monkeypatch, tmp_path, {}, torch=AMD | {"unusable": "GPU 0: hang"})
    assert code == 2
    assert {step["status"] for step in found["steps"] if step["name"] not in run.NEEDS_NO_GPU} == {"not run"}
    assert {row["status"] for row in found["rows"]} == {"not run"}
    assert {step["reason"] for step in found["steps"][2:]} == {"the GPUs can't be used: GPU 0: hang"}


def test_the_cpu_as_a_stand_in_is_said_in_large_letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, found = run_with(monkeypatch, tmp_path, {}, torch=AMD, options=["--device", "cpu"])
    assert code == 0
    assert found["device"] == "cpu"
    assert found["note"] == report.BANNER
    assert {row["status"] for row in found["rows"]} == {"not run"}
    assert f'<div class="banner">{report.BANNER}</div>' in (tmp_path / "report.html").read_text()


def test_steps_that_are_left_out_are_reported_as_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, found = run_with(monkeypatch, tmp_path, {}, torch=AMD, options=["--only", "doctor"])
    assert {step["reason"] for step in found["steps"] if step["name"] not in ("doctor", run.INPUTS)} == {
        "it was left out by --only"
    }


def test_nothing_in_the_page_is_taken_for_html(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_with(monkeypatch, tmp_path, {}, torch=AMD | {"gpus": [{"name": "<script>"}]})
    assert "<script>" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("seen", "vendor", "unusable"),
    [
        (Torch("2.13", hip="7.15", seen=1, devices=(Device("MI300X", "gfx942"),)), "amd", ""),
        (Torch("2.13", cuda="13.0", seen=1, devices=(Device("H200", "sm_90"),)), "nvidia", ""),
        (Torch("2.13", cuda="13.0"), "none", "torch 2.13 sees no GPU"),
        (Torch("2.13", hip="7.15", seen=1, devices=(Device("MI300X", "gfx942", "hang"),)), "amd", "GPU 0: hang"),
        ("signal 11", "none", "the check of torch ended with signal 11"),
    ],
)
def test_the_machines_gpus_are_those_that_torch_computes_on(seen: Torch | str, vendor: str, unusable: str) -> None:
    found = machine.describe_torch(seen, {})
    assert (found["vendor"], found["unusable"]) == (vendor, unusable)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [({}, "0,2"), ({"HIP_VISIBLE_DEVICES": "4,5,6"}, "4,6"), ({"HIP_VISIBLE_DEVICES": ""}, "0,2")],
)
def test_a_broken_gpu_among_others_can_be_left_out(shown: dict[str, str], expected: str) -> None:
    gpus = tuple(Device("MI300X", "gfx942", error) for error in ("", "hang", ""))
    found = machine.describe_torch(Torch("2.13", hip="7.15", seen=3, devices=gpus), shown)
    assert found["unusable"] == f"GPU 1: hang; to run on the others, set HIP_VISIBLE_DEVICES={expected}"


def test_of_the_environment_only_named_variables_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "ask_torch", lambda *_: "exit code 1")
    facts = machine.collect_facts({"HF_TOKEN": SECRET, "HSA_XNACK": "1", "USER": "ann"}, tmp_path)
    assert facts["environment"] == {"HSA_XNACK": "1"}
    assert SECRET not in json.dumps(facts)
