"""No volume and no container in spec.pod can have the name of one that Hone's own pods have."""

from collections.abc import Iterator
from typing import Any

import pytest
from hone_api.schema.validation import validate_object
from hone_operator.finetunejob import jobs
from hone_operator.finetunejob.push_job import build_push_job
from observed import DIGEST, IMAGE, finished_job, job_object, parsed_job
from service_states import deployment_of

Object = dict[str, Any]
BUCKET = {
    "uri": "s3://models/faq/",
    "secret": {"name": "bucket"},
    "caBundle": {"configMap": {"name": "ca"}},
    "endpoint": "https://minio:9000",
}
# Names of more than one ConfigMap of datasets end with digits that nobody would write.
DIGESTS = "dataset-"


def list_pods_of_jobs() -> Iterator[Object]:
    owner = job_object(
        model=BUCKET,
        datasets=[
            {"configMap": {"name": "one", "key": "rows.jsonl"}},
            {"configMap": {"name": "two", "key": "rows.jsonl"}},
            {"claim": {"name": "data", "path": "rows.jsonl"}},
        ],
        dataset=None,
        cache={"claim": {"name": "models"}},
        output={
            "storage": {"accessModes": ["ReadWriteMany"]},
            "push": [BUCKET, {"hub": {"repo": "me/faq", "tokenSecret": {"name": "hub"}}}],
        },
        tracking={"wandb": {"project": "faq", "secret": {"name": "wandb-key"}}},
        resources={"gpus": 1, "nodes": 2},
    )
    owner["spec"].pop("dataset")
    assert not list(validate_object(owner))
    job = parsed_job(owner)
    for made in (
        jobs.build_prepare_job(owner, job, IMAGE, None),
        jobs.build_train_job(owner, job, IMAGE),
        build_push_job(owner, job, IMAGE, DIGEST),
    ):
        yield made["spec"]["template"]["spec"]


def list_pods_of_services() -> Iterator[Object]:
    adapters: list[Object] = [
        {"name": "faq", "fineTuneJob": {"name": "faq"}},
        {"name": "more", **{name: BUCKET[name] for name in ("uri", "secret", "caBundle", "endpoint")}},
    ]
    for engine in ("embedded", "vllm", "sglang", "tgi"):
        more: Object = {"apiKeySecret": {"name": "key"}, "engine": engine}
        cache = {"cache": {"claim": {"name": "models"}}}
        yield deployment_of(model=BUCKET, **more, **cache)["spec"]["template"]["spec"]
        yield deployment_of(model={"name": "org/model"}, tokenSecret={"name": "hub"}, **more)["spec"]["template"][
            "spec"
        ]
        if engine in ("embedded", "vllm"):
            made = deployment_of(finished_job(), model={"name": "org/base"}, adapters=adapters, **more)
            yield made["spec"]["template"]["spec"]


def find_errors(pod: Object) -> str:
    owner = job_object(pod=pod)
    return "\n".join(str(error) for error in validate_object({name: owner[name] for name in owner if name != "status"}))


@pytest.mark.parametrize("pods", [list_pods_of_jobs, list_pods_of_services])
def test_names_of_hones_pods_are_refused(pods: Any) -> None:
    found = list(pods())
    volumes = {volume["name"] for pod in found for volume in pod["volumes"] if not volume["name"].startswith(DIGESTS)}
    containers = {one["name"] for pod in found for one in [*pod["containers"], *pod.get("initContainers", [])]}
    assert len(volumes) > 5
    assert len(containers) > 2
    for name in volumes:
        errors = find_errors({"volumes": [{"name": name, "emptyDir": {}}]})
        assert "is the name of a volume that Hone's pods have" in errors, name
    for name in containers:
        errors = find_errors({"initContainers": [{"name": name, "image": "example/image:1"}]})
        assert "is the name of a container that Hone's pods have" in errors, name


@pytest.mark.parametrize("name", ["secret", "secret-files", "certificates-of-ours", "my-secret-0"])
def test_other_names_are_taken(name: str) -> None:
    assert not find_errors({"volumes": [{"name": name, "emptyDir": {}}]})
