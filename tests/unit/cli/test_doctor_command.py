"""The command `hone doctor`: exit codes, the JSON, and which cluster or machine it checks."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hone.kube import cluster, rest
from hone_cli.doctor import cluster_reader, command, machine, pod_script
from hone_cli.doctor.checks.findings import Finding, Unread, find_exit_code
from hone_cli.main import main
from kubernetes.client.exceptions import ApiException

OK, WARNING = Finding("a", "ok", "fine"), Finding("b", "warning", "hm", "do this")
FAILED = Finding("c", "failed", "no", "do that")
UNKNOWN, OPTIONAL = Finding("d", "unknown", "?", "ask"), Finding("e", "unknown", "?", "ask", is_required=False)
# What scripts rely on: a change here is a change of the format's number.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format", "scope", "exitCode", "counts", "checks"],
    "additionalProperties": False,
    "properties": {
        "format": {"const": 1},
        "scope": {"enum": ["cluster", "local"]},
        "exitCode": {"enum": [0, 1, 2]},
        "counts": {
            "type": "object",
            "required": ["ok", "warning", "failed", "unknown"],
            "additionalProperties": {"type": "integer"},
        },
        "checks": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["check", "status", "required", "message", "remedy"],
                "additionalProperties": False,
                "properties": {
                    "check": {"type": "string", "pattern": "^[a-z][A-Za-z]*$"},
                    "status": {"enum": ["ok", "warning", "failed", "unknown"]},
                    "required": {"type": "boolean"},
                    "message": {"type": "string"},
                    "remedy": {"type": "string"},
                },
            },
        },
    },
}

Doctor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Doctor:
    """Run the command in an empty home; return exit code, stdout and stderr."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *arguments])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err  # type: ignore[return-value]

    return run


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([OK, WARNING], 0),
        ([OK, OPTIONAL], 0),
        ([OK, UNKNOWN], 2),
        ([FAILED, UNKNOWN], 1),
    ],
)
def test_exit_codes_and_the_json(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, findings: list[Finding], code: int
) -> None:
    monkeypatch.setattr(command, "check_here", lambda: findings)
    assert find_exit_code(findings) == code
    for arguments in ([], ["--output", "json"]):
        assert doctor("--local", *arguments)[0] == code
    document = json.loads(doctor("--local", "--output", "json")[1])
    jsonschema.validate(document, SCHEMA)
    assert document["exitCode"] == code
    assert len(document["checks"]) == len(findings)


def test_the_table_has_the_remedy_below_its_finding(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "check_here", lambda: [OK, FAILED])
    lines = doctor("--local")[1].splitlines()
    assert [line.split() for line in lines] == [
        ["✓", "ok", "a", "fine"],
        ["✗", "failed", "c", "no"],
        ["do", "that"],
        ["1", "ok,", "0", "warning,", "1", "failed,", "0", "unknown"],
    ]


def test_text_of_others_does_not_control_the_terminal(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "check_here", lambda: [Finding("a", "ok", "\x1b[2J")])
    assert "\x1b" not in doctor("--local")[1]
    assert json.loads(doctor("--local", "-o", "json")[1])["checks"][0]["message"] == "\x1b[2J"


def test_without_a_kubeconfig_this_machine_is_checked(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "check_here", lambda: [OK])
    code, out, err = doctor("-o", "json")
    assert code == 0
    assert json.loads(out)["scope"] == "local"
    assert "No kubeconfig" in err


@pytest.mark.parametrize("arguments", [["--deep"], ["--context", "c"], ["--namespace", "n"]])
def test_a_requested_cluster_is_not_replaced_by_this_machine(doctor: Doctor, arguments: list[str]) -> None:
    code, out, _ = doctor(*arguments)
    assert code == 2
    assert not out


def test_a_named_kubeconfig_that_is_missing_is_no_success(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    assert doctor()[0] == 2


def test_a_cluster_that_never_answers_ends_in_an_error(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rest, "TIMEOUT", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kubeconfig = tmp_path / "config"
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = {"clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "u", "user": {}}]}
        contexts = [{"name": "t", "context": {"cluster": "c", "user": "u"}}]
        kubeconfig.write_text(yaml.safe_dump(config | {"contexts": contexts, "current-context": "t"}))
        # The client reads KUBECONFIG when it is imported.
        monkeypatch.setattr(cluster.kubeconfig.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
        code, out, err = doctor("--context", "t")
    assert code == 2
    assert not out
    assert "can't be reached" in err


@pytest.mark.parametrize(("status", "calls"), [(429, 2), (503, 2), (403, 1)])
def test_a_busy_server_is_asked_once_more(monkeypatch: pytest.MonkeyPatch, status: int, calls: int) -> None:
    monkeypatch.setattr(cluster_reader, "BUSY_SECONDS", 0)
    made = []

    def call() -> int:
        made.append(1)
        raise ApiException(status=status, reason="no")

    assert cluster_reader.Attempts(time.monotonic() + 1000).read(call) == Unread("no")
    assert len(made) == calls


def test_a_slow_cluster_ends_in_a_report() -> None:
    late = cluster_reader.Attempts(time.monotonic() - 1)
    assert isinstance(late.read(lambda: 1), Unread)
    assert cluster_reader.Attempts(time.monotonic() + 1000).read(lambda: 1) == 1


@pytest.mark.parametrize("arguments", [["--local", "--deep"], ["--node", "a"], ["--output", "xml"], ["--timeout", "0"]])
def test_wrong_usage(doctor: Doctor, arguments: list[str]) -> None:
    assert doctor(*arguments)[0] == 2


def test_the_cache_is_where_the_hubs_libraries_look(tmp_path: Path) -> None:
    assert machine.find_cache({"HF_HOME": "/a"}) == Path("/a/hub")
    assert machine.find_cache({"HF_HOME": "/a", "HF_HUB_CACHE": "/b"}) == Path("/b")
    assert machine.find_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert machine.find_cache_error(tmp_path / "not" / "yet") is None
    (tmp_path / "file").touch()
    assert machine.find_cache_error(tmp_path / "file" / "hub") == f"{tmp_path}/file is not a folder"


def test_the_machine_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ask_torch", lambda *_: "not asked")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 2048 kB\n")
    found = machine.collect_machine({"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}, tmp_path)
    assert (found.memory, found.hub, found.files.kfd) == (2048 * 1024, None, None)
    refused = machine.collect_machine({"HF_ENDPOINT": "http://127.0.0.1:1"}, tmp_path)
    assert isinstance(refused.hub, str)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", machine.HUB),
        ("https://mirror.example/hub", "https://mirror.example/hub"),
        ("https://user:s3cret@mirror.example:8443/hub", "https://mirror.example:8443/hub"),
        ("https://s3cret@mirror.example", "https://mirror.example"),
        ("mirror.example", "mirror.example"),
    ],
)
def test_the_hubs_address_is_shown_without_its_password(given: str, asked: str) -> None:
    assert machine.find_hub({"HF_ENDPOINT": given}) == asked


@pytest.mark.parametrize("url", ["mirror.example", "file:///etc", "ftp://mirror.example", ""])
def test_an_address_that_is_not_http_is_not_asked(url: str) -> None:
    assert machine.ask_hub(url) == "its address begins neither with https:// nor with http://"


ANSWERS = {
    "of SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "none": b"",
    "of TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "a line without end": b"HTTP/1.1 200 " + b"x" * 70_000,
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    "no number": b"HTTP/1.1 OK\r\n\r\n",
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("ask", [machine.ask_hub, pod_script.reach, pod_script.resolve_image])
def test_an_answer_that_is_not_http_is_reported(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], object], name: str
) -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):  # who asks hangs up when it has read enough
            connection.recv(1 << 16)
            connection.sendall(ANSWERS[name])

    for variable in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=answer, args=[listener], daemon=True)
        thread.start()
        found = ask(f"{address}/hone:1" if ask is pod_script.resolve_image else f"http://{address}")
        thread.join()
    assert "error" in found if isinstance(found, dict) else isinstance(found, str)
