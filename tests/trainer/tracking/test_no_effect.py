"""A tracker changes no byte of the result, and one that is dead or silent does not stop training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tracking_servers import find_free_port, open_silent_server, run_until_sent
from wandb_server import WandbServer

Job = Callable[..., dict[str, Any]]
LONG = {"maxSteps": 12, "neftuneNoiseAlpha": 5}
SPEC: dict[str, Any] = {"training": LONG, "lora": {"loraDropout": 0.1}}


@pytest.fixture(scope="module")
def untracked(job: Job, train: Callable[..., Any]) -> dict[str, Any]:
    """Train with random numbers in every step, and return the manifest."""
    manifest: dict[str, Any] = train(job(**_copy(SPEC))).manifest
    return manifest


def _copy(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(value) for name, value in spec.items()}


def compare(manifest: dict[str, Any], untracked: dict[str, Any]) -> None:
    assert manifest["digest"] == untracked["digest"]
    assert manifest["files"] == untracked["files"]
    assert manifest["spec"] == untracked["spec"]


def test_a_tracker_changes_no_byte(
    job: Job, train: Callable[..., Any], untracked: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "WANDB_API_KEY").write_text("k" * 40)
    with WandbServer() as server:
        tracking = {"wandb": {"project": "faq", "baseUrl": server.url, "secret": {"name": "wandb"}}}
        arguments = ("--secret", f"wandb={tmp_path}")
        document = job(**_copy(SPEC), tracking=tracking)
        result = run_until_sent(lambda: train(document, arguments=arguments, output=tmp_path / "out"))
    compare(result.manifest, untracked)


def test_a_dead_tracker_changes_no_byte_and_is_reported(
    job: Job, train: Callable[..., Any], untracked: dict[str, Any]
) -> None:
    tracking = {"mlflow": {"uri": f"http://127.0.0.1:{find_free_port()}"}}
    result = train(job(**_copy(SPEC), tracking=tracking))
    assert result.code == 0, result.log
    compare(result.manifest, untracked)
    [report] = result.message["tracking"]
    assert report["unsent"] == 12
    assert report["message"]
    assert "mlflow: no page; 12 logged lines were not sent" in result.log


def test_a_silent_tracker_changes_no_byte_and_is_reported(
    job: Job, train: Callable[..., Any], untracked: dict[str, Any]
) -> None:
    with open_silent_server() as url:
        result = train(job(**_copy(SPEC), tracking={"mlflow": {"uri": url}}))
    assert result.code == 0, result.log
    compare(result.manifest, untracked)
    assert result.message["tracking"][0]["unsent"] == 12
    assert result.message["tracking"][0]["message"]
