"""Credentials of trackers: those that no header takes are refused before a library quotes them, and none is shown."""

import base64
from typing import Any

import pytest
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import INVALID_SPEC, HoneError
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.tracking.process import describe
from hone_trainer.tracking.requirements import read_credentials

SECRET = "opensesame"


def read(tracker: str, values: dict[str, str]) -> dict[str, dict[str, str]]:
    options: dict[str, Any] = {"uri": "http://mlflow"} if tracker == "mlflow" else {"project": "faq"}
    spec = {
        "model": {"name": "a/b"},
        "dataset": {"name": "a/c"},
        "tracking": {tracker: options | {"secret": {"name": "login"}}},
    }
    job = FineTuneJob.model_validate(
        {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "faq"}, "spec": spec}
    )
    return read_credentials(JobInputs(job, {}, {}, {}, inline_secrets={"login": values}))


@pytest.mark.parametrize("value", [f"{SECRET}\nsecond line", f"{SECRET}\x07", f"{SECRET}\u200b1", f"\u00e9{SECRET}"])
@pytest.mark.parametrize(("tracker", "key"), [("mlflow", "MLFLOW_TRACKING_TOKEN"), ("wandb", "WANDB_API_KEY")])
def test_a_token_that_no_header_takes_is_refused_and_not_shown(tracker: str, key: str, value: str) -> None:
    with pytest.raises(HoneError) as caught:
        read(tracker, {key: value})
    assert caught.value.reason is INVALID_SPEC
    assert key in caught.value.message
    assert SECRET not in caught.value.format_message()


def test_a_line_feed_at_the_end_and_any_password_are_taken() -> None:
    found = read("mlflow", {"MLFLOW_TRACKING_TOKEN": f"{SECRET}\n", "MLFLOW_TRACKING_PASSWORD": "p\u00e4ss\tword"})
    assert found == {"mlflow": {"MLFLOW_TRACKING_TOKEN": SECRET, "MLFLOW_TRACKING_PASSWORD": "p\u00e4ss\tword"}}


def test_neither_a_password_nor_its_header_is_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "u")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    header = base64.b64encode(f"u:{SECRET}".encode()).decode()
    shown = describe(ValueError(f"refused Basic {header} of user u with {SECRET}x: not authenticated"))
    assert SECRET not in shown
    assert header not in shown
    assert "of user *** with" in shown
    assert "not authenticated" in shown
