"""The `hone` command except for chat and watch: its output, its exit codes, and the arguments that it passes on."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hone.local.command_lines import make_engine_arguments, make_trainer_arguments
from hone.specs import documents
from hone_api.reasons import HoneError
from hone_cli.main import main

JOB: dict[str, Any] = {
    "apiVersion": "hone.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "faq"},
    "spec": {"model": {"name": "tiny/base"}, "dataset": {"configMap": {"name": "faq", "key": "train.jsonl"}}},
}
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "faq"}, "data": {"train.jsonl": "{}"}}

Hone = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hone(capsys: pytest.CaptureFixture[str]) -> Hone:
    """Run the command; return exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err  # type: ignore[return-value]

    return run


def write(path: Path, *objects: Any) -> Path:
    path.write_text(yaml.safe_dump_all(objects))
    return path


def service(**spec: Any) -> dict[str, Any]:
    return JOB | {"kind": "InferenceService", "spec": spec}


class TestValidate:
    def test_valid_objects_and_others(self, hone: Hone, tmp_path: Path) -> None:
        path = write(tmp_path / "job.yaml", CONFIG_MAP, JOB)
        code, out, _ = hone("validate", path)
        assert code == 0
        assert out.splitlines() == [
            f"- {path}: ConfigMap/faq: not checked, it is not an object of Hone's",
            f"✓ {path}: FineTuneJob/faq",
        ]

    def test_every_file_and_object_is_checked(self, hone: Hone, tmp_path: Path) -> None:
        wrong = JOB | {"metadata": {"name": "wrong"}, "spec": JOB["spec"] | {"method": "magic"}}
        first, second = write(tmp_path / "a.yaml", wrong, JOB), write(tmp_path / "b.yaml", service(model={}))
        code, out, _ = hone("validate", first, tmp_path / "missing.yaml", second)
        assert code == 1
        assert f"✗ {first}: FineTuneJob/wrong\n" in out
        assert "spec.method" in out
        assert "magic" in out
        assert f"✓ {first}: FineTuneJob/faq" in out
        assert f"✗ {tmp_path / 'missing.yaml'}\n" in out
        assert f"✗ {second}: InferenceService/faq\n" in out
        assert "exactly one of fineTuneJob, name" in out

    @pytest.mark.parametrize("change", [{"kind": ["FineTuneJob"]}, {"kind": None}, {"apiVersion": 1}, {"kind": ""}])
    def test_an_object_without_a_kind_is_refused(self, hone: Hone, tmp_path: Path, change: dict[str, Any]) -> None:
        code, out, _ = hone("validate", write(tmp_path / "job.yaml", JOB | change))
        assert code == 1
        assert f"{next(iter(change))}: Required value: a string" in out

    def test_values_that_yaml_reads_as_others_need_quotes(self, hone: Hone, tmp_path: Path) -> None:
        path = tmp_path / "job.yaml"
        write(path, JOB | {"metadata": {"name": "faq", "labels": {"a": True}, "annotations": {"b": 1}, "namespace": 5}})
        _, out, _ = hone("validate", path)
        for field in ("labels.a", "annotations.b", "namespace"):
            assert re.search(rf"metadata.{field}: Invalid value: \S+: must be a string; write it in quotes", out)
        write(path, JOB | {"metadata": {"name": 5, "labels": ["a"]}})
        _, out, _ = hone("validate", path)
        assert 'metadata.name in body must be of type string: "integer"; write it in quotes' in out
        assert 'metadata.labels: Invalid value: ["a"]: must be an object' in out

    def test_another_version_of_the_api_is_not_ignored(self, hone: Hone, tmp_path: Path) -> None:
        code, out, _ = hone("validate", write(tmp_path / "job.yaml", JOB | {"apiVersion": "hone.dev/v9"}))
        assert code == 1
        assert "hone.dev/v9" in out

    def test_what_is_not_yaml_is_named(self, hone: Hone, tmp_path: Path) -> None:
        path = tmp_path / "job.yaml"
        path.write_text("a: [")
        code, out, err = hone("validate", path)
        assert (code, err) == (1, "")
        assert f"{path} is not YAML" in out


class TestRun:
    def test_the_file_must_hold_one_job(self, hone: Hone, tmp_path: Path) -> None:
        code, _, err = hone("run", write(tmp_path / "none.yaml", CONFIG_MAP))
        assert code == 64
        assert "holds no FineTuneJob: ConfigMap/faq" in err
        code, _, err = hone("run", write(tmp_path / "two.yaml", JOB, JOB))
        assert code == 64
        assert "holds 2 FineTuneJobs: FineTuneJob/faq, FineTuneJob/faq" in err

    def test_an_invalid_job_is_not_started(self, hone: Hone, tmp_path: Path) -> None:
        wrong = JOB | {"spec": JOB["spec"] | {"method": "magic"}}
        code, _, err = hone("run", write(tmp_path / "job.yaml", wrong), "--output", tmp_path / "out")
        assert code == 64
        assert "spec.method" in err
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()

    def test_claims_must_be_pairs(self, hone: Hone, tmp_path: Path) -> None:
        code, _, err = hone("run", write(tmp_path / "job.yaml", JOB), "--claim", "data")
        assert code == 64
        assert "--claim data is not NAME=DIR" in err

    def test_verbose_shows_the_traceback(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "hone_cli", "run", str(tmp_path / "missing.yaml")]
        quiet = subprocess.run(command, capture_output=True, text=True)
        loud = subprocess.run([*command, "--verbose"], capture_output=True, text=True)
        assert quiet.returncode == loud.returncode == 64
        assert "can't be read" in quiet.stderr
        assert "Traceback" not in quiet.stderr
        assert "Traceback" in loud.stderr

    def test_the_trainer_gets_the_file_as_it_is(self) -> None:
        arguments = make_trainer_arguments("run", Path("job.yaml"), Path("out"), {"data": "/mnt"}, verbose=True)
        assert arguments == ["run", "job.yaml", "--output", "out", "--claim", "data=/mnt", "--verbose"]


class TestChild:
    """The child is a module written by the test, started by a real parent."""

    PARENT = "import os, sys; from hone_cli.ui.child_process import run_module; " + (
        "sys.exit(run_module(sys.argv[1], sys.argv[2:], on_stop=lambda: os.write(1, b'stopping\\n')))"
    )

    def start(self, tmp_path: Path, child: str) -> subprocess.Popen[str]:
        (tmp_path / "child_of_test.py").write_text(child)
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", self.PARENT, "child_of_test", "a word"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def test_arguments_and_exit_code_are_passed_on(self, tmp_path: Path) -> None:
        parent = self.start(tmp_path, "import sys; print(sys.argv[1:], flush=True); sys.exit(68)")
        assert parent.communicate(timeout=30)[0] == "['a word']\n"
        assert parent.returncode == 68

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_one_signal_lets_the_child_finish(self, tmp_path: Path, number: int) -> None:
        parent = self.start(
            tmp_path,
            "import signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
            "signal.signal(signal.SIGINT, lambda *_: sys.exit(1))\n"
            "print('ready', flush=True)\n"
            "time.sleep(60)",
        )
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        os.killpg(parent.pid, number)  # as a terminal does
        assert parent.communicate(timeout=30)[0] == "stopping\n"
        assert parent.returncode == 75

    def test_the_second_signal_ends_it_at_once(self, tmp_path: Path) -> None:
        parent = self.start(
            tmp_path,
            "import os, signal, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'saving\\n'))\n"
            "print('ready', flush=True)\n"
            "while True: time.sleep(60)",
        )
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.send_signal(signal.SIGINT)
        assert {parent.stdout.readline(), parent.stdout.readline()} == {"stopping\n", "saving\n"}
        parent.send_signal(signal.SIGINT)
        parent.communicate(timeout=30)
        assert parent.returncode == 128 + signal.SIGKILL

    @pytest.mark.parametrize(
        "lost", ["raise OSError(5, 'Input/output error')", "print(1, file=open('/dev/full', 'w'))"]
    )
    def test_a_closed_terminal_stops_the_child_once(self, tmp_path: Path, lost: str) -> None:
        (tmp_path / "hook.py").write_text(f"def stop():\n    {lost}\n")
        (tmp_path / "child_of_test.py").write_text(
            "import os, signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'saving\\n'), time.sleep(0.3), sys.exit(75)))\n"
            "os.write(1, b'ready\\n')\n"
            "time.sleep(60)"
        )
        program = "import sys, hook; from hone_cli.ui.child_process import run_module; "
        program += "sys.exit(run_module('child_of_test', [], on_stop=hook.stop))"
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        parent = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.send_signal(signal.SIGHUP)
        assert parent.stdout.readline() == "saving\n"
        parent.send_signal(signal.SIGHUP)  # kernel and shell send one each
        parent.communicate(timeout=30)
        assert parent.returncode == 75

    def test_nohup_keeps_a_hangup_away(self, tmp_path: Path) -> None:
        program = "import os, signal; from hone_cli.ui.child_process import run_module; "
        program += "signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        program += "print(run_module('signal_sender', [], on_stop=lambda: print('stopping')))"
        (tmp_path / "signal_sender.py").write_text("import os, signal; os.kill(os.getppid(), signal.SIGHUP)")
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.stdout == "0\n"


class TestServe:
    def test_a_folder_is_served_as_it_is(self, tmp_path: Path) -> None:
        assert make_engine_arguments(tmp_path, {}, {}) == [str(tmp_path)]

    def test_a_manifest_is_resolved_to_folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("faq").mkdir()
        Path("elsewhere").mkdir()
        adapters = [
            {"name": "support", "fineTuneJob": {"name": "support-lora"}},
            {"name": "legal", "claim": {"name": "data", "path": "legal/lora"}},
        ]
        spec = {"model": {"fineTuneJob": {"name": "faq"}}, "adapters": adapters, "maxModelLen": 512}
        path = write(tmp_path / "service.yaml", CONFIG_MAP, service(**spec))
        assert make_engine_arguments(path, {"data": "/mnt"}, {"support-lora": "elsewhere"}) == [
            "faq",
            *("--adapter", "support=elsewhere"),
            *("--adapter", "legal=/mnt/legal/lora"),
            *("--max-model-len", "512"),
        ]

    def test_chats_are_as_in_the_cluster(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        spec = {"model": {"name": "tiny"}, "chatTemplate": "{{ messages }}"}
        path = write(tmp_path / "known.yaml", service(**spec, toolCallParser="hermes"))
        chat = "--chat-template={{ messages }}"
        assert make_engine_arguments(path, {}, {}) == ["tiny", chat, "--tool-call-parser", "hermes"]
        path = write(tmp_path / "other.yaml", service(**spec, toolCallParser="xlam", engine="vllm"))
        assert make_engine_arguments(path, {}, {}) == ["tiny", chat]
        assert "toolCallParser xlam is not read here" in capsys.readouterr().err

    def test_a_null_is_as_if_left_out(self, tmp_path: Path) -> None:
        model = {"name": None, "fineTuneJob": None, "claim": {"name": "models", "path": None}}
        path = write(tmp_path / "nulls.yaml", service(model=model, adapters=None, maxModelLen=None))
        assert make_engine_arguments(path, {"models": "/mnt"}, {}) == ["/mnt"]

    def test_models_of_the_hub_and_of_claims(self, tmp_path: Path) -> None:
        path = write(tmp_path / "hub.yaml", service(model={"name": "tiny/base"}))
        assert make_engine_arguments(path, {}, {}) == ["tiny/base"]
        path = write(tmp_path / "commit.yaml", service(model={"name": "tiny/base", "revision": "v2"}))
        assert make_engine_arguments(path, {}, {}) == ["tiny/base", "--revision", "v2"]
        path = write(tmp_path / "claim.yaml", service(model={"claim": {"name": "models"}}))
        assert make_engine_arguments(path, {"models": "/mnt"}, {}) == ["/mnt"]

    def test_a_uri_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "uri.yaml", service(model={"uri": "s3://models/faq/"}))
        with pytest.raises(HoneError, match=r"spec\.model\.uri is s3://models/faq/, and the engine on this machine"):
            make_engine_arguments(path, {}, {})

    def test_fields_that_are_ignored_here_are_reported(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        more = {"apiKeySecret": {"name": "key", "key": "token"}, "extraArgs": ["--seed=1"]}
        path = write(tmp_path / "hub.yaml", service(model={"name": "tiny/base"}, **more))
        assert make_engine_arguments(path, {}, {}) == ["tiny/base"]
        said = capsys.readouterr().err
        assert "spec.apiKeySecret is not read here. Put a key" in said
        assert "spec.extraArgs is not read here. They are for" in said

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ({"fineTuneJob": {"name": "faq"}}, "spec.model.fineTuneJob names faq"),
            ({"claim": {"name": "models"}}, "spec.model.claim names models"),
        ],
    )
    def test_a_missing_source_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(HoneError, match=message):
            make_engine_arguments(write(tmp_path / "service.yaml", service(model=model)), {}, {})

    def test_a_wrong_path_is_named(self, hone: Hone, tmp_path: Path) -> None:
        code, _, err = hone("serve", tmp_path / "nowhere")
        assert code == 66
        assert f"{tmp_path / 'nowhere'} does not exist" in err


def test_titles_of_broken_documents() -> None:
    assert documents.make_title({}) == "object without kind/(no name)"
    assert documents.make_title({"kind": "FineTuneJob", "metadata": "text"}) == "FineTuneJob/(no name)"


def test_help_loads_no_heavy_library() -> None:
    script = (
        "import sys\n"
        "from hone_cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'kubernetes', 'httpx', 'pydantic', 'celpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "validate" in done.stdout


def test_validate_loads_neither_torch_nor_kubernetes(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from hone_cli.main import main\n"
        f"try: main(['validate', {str(write(tmp_path / 'job.yaml', JOB))!r}])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'transformers', 'kubernetes'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
