"""Experiment trackers in the cluster: which pod gets their Secrets, and their links in the status."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hone_api.artifacts.trainer_reports import ProgressReport
from hone_api.finetunejobs.spec import FineTuneJob, FineTuneJobSpec
from hone_operator.finetunejob import children, jobs
from hone_operator.finetunejob.plan import plan_finetunejob
from hone_operator.finetunejob.replacement_fields import are_fields_changed
from hone_operator.finetunejob.status import build_progress_patch
from hone_operator.objects.timestamps import format_timestamp
from observed import IMAGE, NOW, PREPARED, job_object, observed_job, parsed_job, pod
from pydantic import ValidationError

TRACKING = {
    "mlflow": {"uri": "http://mlflow:5000", "secret": {"name": "mlflow-login"}},
    "wandb": {"project": "faq", "secret": {"name": "wandb-key"}},
}
REPORT = {"name": "mlflow", "url": "http://mlflow:5000/#/experiments/1/runs/2", "unsent": 0}


def container(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("gpus", [0, 1])
def test_only_the_training_pod_has_the_secrets_of_trackers(gpus: int) -> None:
    owner = job_object(tracking=TRACKING, resources={"gpus": gpus})
    job = parsed_job(owner)
    training, preparing = jobs.build_train_job(owner, job, IMAGE), jobs.build_prepare_job(owner, job, IMAGE, None)
    arguments = container(training)["args"]
    given = [arguments[place + 1] for place, word in enumerate(arguments) if word == "--secret"]
    assert given == ["mlflow-login=/secrets/mlflow-login", "wandb-key=/secrets/wandb-key"]
    mounted = [v["secret"]["secretName"] for v in training["spec"]["template"]["spec"]["volumes"] if "secret" in v]
    assert mounted == ["mlflow-login", "wandb-key"]
    assert "mlflow-login" not in json.dumps(preparing["spec"])
    assert "WANDB" not in json.dumps(container(training)["env"])


def test_a_secret_that_two_need_is_mounted_once() -> None:
    source = {"uri": "s3://data/faq/", "secret": {"name": "shared"}}
    tracking = {name: fields | {"secret": {"name": "shared"}} for name, fields in TRACKING.items()}
    owner = job_object(tracking=tracking, dataset=source, resources={"gpus": 0})
    made = jobs.build_train_job(owner, parsed_job(owner), IMAGE)
    assert container(made)["args"].count("--secret") == 1
    names = [volume["name"] for volume in made["spec"]["template"]["spec"]["volumes"]]
    assert len(names) == len(set(names))


def test_the_trainer_reads_where_to_track_and_the_artifact_does_not_mention_it() -> None:
    owner = job_object(tracking=TRACKING)
    manifest = children.build_config_map(owner)["data"]["finetunejob.yaml"]
    assert "http://mlflow:5000" in manifest
    assert "tracking" not in parsed_job(owner).spec.drop_unpublished()


def test_another_tracker_replaces_the_job() -> None:
    owner = job_object(tracking=TRACKING)
    made = jobs.build_train_job(owner, parsed_job(owner), IMAGE)
    assert not are_fields_changed(made, owner, parsed_job(owner), has_token=False)
    other = job_object(tracking={"wandb": {"project": "other"}})
    assert are_fields_changed(made, other, parsed_job(other), has_token=False)
    without = jobs.build_train_job(job_object(), parsed_job(job_object()), IMAGE)
    assert not are_fields_changed(without, job_object(), parsed_job(job_object()), has_token=False)


RUNNING = pod(running={"startedAt": format_timestamp(NOW - timedelta(seconds=50))})


def reported(**more: Any) -> ProgressReport:
    return ProgressReport.model_validate(
        {"stage": "Training", "progress": {"step": 3, "totalSteps": 9}, "tracking": [REPORT | more]}
    )


def test_the_link_is_in_the_status() -> None:
    owner = job_object(tracking=TRACKING)
    observed = observed_job(owner, RUNNING, trainer_pods=[RUNNING], reports={"uid-p1": reported()})
    assert plan_finetunejob(observed, NOW).status["tracking"] == [REPORT]


def test_what_is_not_sent_is_updated_without_a_full_pass() -> None:
    observed = observed_job(
        job_object(tracking=TRACKING, status=PREPARED), RUNNING, trainer_pods=[RUNNING], reports={"uid-p1": reported()}
    )
    owner = job_object(tracking=TRACKING, status=plan_finetunejob(observed, NOW).status)
    patch = build_progress_patch(owner, reported(unsent=2, message="refused"), [RUNNING], NOW)
    assert patch is not None
    assert patch["tracking"] == [REPORT | {"unsent": 2, "message": "refused"}]
    assert build_progress_patch(owner, reported(), [RUNNING], NOW) == {}


@pytest.mark.parametrize(
    ("tracking", "field"),
    [
        ({"mlflow": {"uri": "http://user:pass@mlflow:5000"}}, "uri"),
        ({"mlflow": {"uri": "sqlite:///x"}}, "uri"),
        ({"mlflow": {}}, "uri"),
        ({"wandb": {}}, "project"),
        ({"wandb": {"project": "a/b"}}, "project"),
        ({"wandb": {"project": "a", "baseUrl": "https://host/path"}}, "baseUrl"),
        ({"trackio": {"project": "../x"}}, "project"),
        ({"comet": {}}, "comet"),
    ],
)
def test_wrong_trackers_are_refused(tracking: dict[str, Any], field: str) -> None:
    spec = {"model": {"name": "a/b"}, "dataset": {"name": "a/c"}, "tracking": tracking}
    with pytest.raises(ValidationError, match=field):
        FineTuneJobSpec.model_validate(spec)


def test_a_report_with_a_long_message_does_not_reach_the_status() -> None:
    with pytest.raises(ValidationError):
        reported(message="x" * 5000)


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert FineTuneJob.model_validate(job_object(status={"tracking": [REPORT | {"new": 1}]})).status is not None
