"""The command that pods and `hone push` run: its destinations, its exit code, and its termination message."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hone_api.artifacts.trainer_reports import TERMINATION_MESSAGE_BYTES, TerminationMessage
from hone_trainer.push.main import main
from hone_trainer.remote import transfers
from pushed_artifacts import list_content, write_artifact
from s3server.gateway import SECRET, Gateway

Object = dict[str, Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "artifact")


def write_manifest(folder: Path, *destinations: Object) -> Path:
    """Write a FineTuneJob with these destinations."""
    spec = {"model": {"name": "me/tiny"}, "dataset": {"name": "me/rows"}, "output": {"push": list(destinations)}}
    job = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "faq"}, "spec": spec}
    file = folder / "finetunejob.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def mount(folder: Path, name: str, data: dict[str, str]) -> list[str]:
    """Write a Secret's folder, and return its option."""
    path = folder / name
    path.mkdir()
    for key, value in data.items():
        (path / key).write_text(value)
    return ["--secret", f"{name}={path}"]


def run(tmp_path: Path, *arguments: object) -> tuple[int, TerminationMessage]:
    log = tmp_path / "termination"
    code = main([*map(str, arguments), "--termination-log", str(log)])
    assert log.stat().st_size <= TERMINATION_MESSAGE_BYTES
    return code, TerminationMessage.model_validate_json(log.read_bytes())


def bucket(gateway: Gateway, folder: str, secret: str = "writer") -> Object:
    return {"uri": f"s3://data/{folder}", "endpoint": gateway.url, "secret": {"name": secret}}


def test_all_destinations_are_pushed_to(gateway: Gateway, root: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, bucket(gateway, "command/a"), bucket(gateway, "command/b/"))
    code, message = run(tmp_path, root, "--manifest", manifest, *mount(tmp_path, "writer", SECRET))
    assert (code, message.outcome, message.reason) == (0, "Succeeded", "Pushed")
    assert [(each.index, each.reason) for each in message.pushed or []] == [(0, None), (1, None)]
    assert gateway.files("command/a") == gateway.files("command/b") == list_content(root)


def test_one_that_fails_does_not_keep_the_others_from_being_pushed_to(
    gateway: Gateway, root: Path, tmp_path: Path
) -> None:
    nowhere = bucket(gateway, "x") | {"uri": "s3://nowhere/x"}
    refused, lacking = bucket(gateway, "x", "wrong"), bucket(gateway, "x", "empty")
    manifest = write_manifest(tmp_path, refused, nowhere, lacking, bucket(gateway, "command/good"))
    secrets = mount(tmp_path, "writer", SECRET) + mount(tmp_path, "empty", {})
    secrets += mount(tmp_path, "wrong", {**SECRET, "AWS_SECRET_ACCESS_KEY": "opensesam"})
    code, message = run(tmp_path, root, "--manifest", manifest, *secrets)
    assert (code, message.outcome, message.reason) == (67, "Failed", "StoreUnauthorized")
    results = message.pushed or []
    assert [each.reason for each in results] == ["StoreUnauthorized", "DestinationMissing", "InvalidSpec", None]
    assert gateway.files("command/good") == list_content(root)
    assert "opensesam" not in message.model_dump_json()


def test_a_failure_that_a_retry_may_fix_decides_the_exit_code(
    gateway: Gateway, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "ATTEMPTS", 1)
    gone = bucket(gateway, "x") | {"endpoint": "http://127.0.0.1:1"}
    manifest = write_manifest(tmp_path, bucket(gateway, "x", "empty"), gone)
    secrets = mount(tmp_path, "writer", SECRET) + mount(tmp_path, "empty", {})
    code, message = run(tmp_path, root, "--manifest", manifest, *secrets)
    assert (code, message.reason) == (71, "StoreUnreachable")


def test_many_long_failures_fit_into_a_termination_message(gateway: Gateway, root: Path, tmp_path: Path) -> None:
    long = [{"uri": f"s3://nowhere/{number}{'x' * 900}", "endpoint": gateway.url} for number in range(8)]
    destinations = [each | {"secret": {"name": "writer"}} for each in long]
    manifest = write_manifest(tmp_path, *destinations)
    code, message = run(tmp_path, root, "--manifest", manifest, *mount(tmp_path, "writer", SECRET))
    assert (code, message.reason) == (66, "DestinationMissing")
    assert len(message.pushed or []) == 8


def test_another_artifact_than_the_operators_is_not_pushed(gateway: Gateway, root: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, bucket(gateway, "command/other"))
    secrets = mount(tmp_path, "writer", SECRET)
    code, message = run(tmp_path, root, "--manifest", manifest, *secrets, "--digest", "sha256:" + "0" * 64)
    assert (code, message.reason, message.pushed) == (65, "ArtifactCorrupt", [])
    assert gateway.files("command/other") == {}


def test_a_hub_token_that_can_not_be_sent_is_not_printed(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub = {"hub": {"repo": "me/faq", "tokenSecret": {"name": "hub"}}}
    secrets = mount(tmp_path, "hub", {"token": "hf_\nhunter2"})
    code, message = run(tmp_path, root, "--manifest", write_manifest(tmp_path, hub), *secrets)
    assert (code, message.reason) == (64, "InvalidSpec")
    assert "hunter2" not in message.model_dump_json() + capfd.readouterr().err


@pytest.mark.parametrize(
    "address",
    ["s3://A", "hf://faq", "https://example.com/faq", "models/faq", "oci://faq:v1", "oci://host/faq@sha256:0"],
)
def test_an_address_that_is_none_is_refused(root: Path, tmp_path: Path, address: str) -> None:
    code, message = run(tmp_path, root, address)
    assert (code, message.reason) == (64, "InvalidSpec")
    assert message.message.startswith(f"The destination is {address}, which is no address to push to.")


def test_addresses_on_a_laptop_use_the_environment(gateway: Gateway, root: Path, tmp_path: Path) -> None:
    keys = {"AWS_ENDPOINT_URL_S3": gateway.url, "HOME": str(tmp_path), **SECRET}
    command = [sys.executable, "-m", "hone_trainer.push.main", str(root), "s3://data/laptop"]
    done = subprocess.run(command, env={**os.environ, **keys}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert gateway.files("laptop") == list_content(root)
    refused = {**os.environ, **keys, "AWS_SECRET_ACCESS_KEY": "x"}
    done = subprocess.run(command, env=refused, capture_output=True, text=True, timeout=120)
    assert done.returncode == 67
    assert "The destination is s3://data/laptop, and the server refused access" in done.stderr


def test_the_command_does_not_import_torch() -> None:
    code = "import sys; import hone_trainer.push.main; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
