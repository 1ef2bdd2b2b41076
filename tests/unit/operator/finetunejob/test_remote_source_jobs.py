"""Which pods get the Secrets and certificates of sources with a URI."""

import json
from typing import Any

import pytest
from hone_operator.finetunejob import jobs
from observed import IMAGE, job_object, parsed_job

SOURCE = {
    "uri": "s3://data/faq/",
    "secret": {"name": "reader"},
    "endpoint": "http://minio:9000",
    "caBundle": {"configMap": {"name": "private-ca", "key": "ca.crt"}},
}


def container(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("gpus", [0, 1])
def test_only_the_preparing_pod_has_the_secret(gpus: int) -> None:
    owner = job_object(dataset=SOURCE, resources={"gpus": gpus})
    job = parsed_job(owner)
    assert jobs.has_prepare_job(job)
    preparing, training = jobs.build_prepare_job(owner, job, IMAGE, None), jobs.build_train_job(owner, job, IMAGE)
    assert "reader" not in json.dumps(training["spec"])
    assert "private-ca" not in json.dumps(training["spec"])
    assert {"name": "HONE_OFFLINE", "value": "1"} in container(training)["env"]
    arguments = container(preparing)["args"]
    assert arguments[arguments.index("--secret") + 1] == "reader=/secrets/reader"
    assert arguments[arguments.index("--config-map") + 1] == "private-ca=/configmaps/private-ca"
    [volume] = [v for v in preparing["spec"]["template"]["spec"]["volumes"] if "secret" in v]
    assert volume["secret"] == {"secretName": "reader", "defaultMode": 0o440}
    assert not [variable for variable in container(preparing)["env"] if "AWS" in variable["name"]]


def test_a_secret_of_both_sources_is_mounted_once() -> None:
    owner = job_object(dataset=SOURCE, model={**SOURCE, "uri": "s3://models/tiny"}, resources={"gpus": 1})
    made = jobs.build_prepare_job(owner, parsed_job(owner), IMAGE, None)
    assert container(made)["args"].count("--secret") == 1
    assert container(made)["args"].count("--config-map") == 1
    names = [volume["name"] for volume in made["spec"]["template"]["spec"]["volumes"]]
    assert len(names) == len(set(names))


def test_a_public_source_is_prepared_by_a_trainer_without_gpus() -> None:
    owner = job_object(dataset={"uri": "https://example.com/faq.jsonl"}, resources={"gpus": 0})
    job = parsed_job(owner)
    assert not jobs.has_prepare_job(job)
    assert "HONE_OFFLINE" not in json.dumps(jobs.build_train_job(owner, job, IMAGE))
