"""What the pods of a job with several datasets mount, and that they differ in nothing else."""

import json
from typing import Any

import pytest
from hone_operator.finetunejob import jobs
from observed import IMAGE, job_object, parsed_job

REMOTE = {
    "uri": "s3://data/faq/",
    "secret": {"name": "reader"},
    "caBundle": {"configMap": {"name": "private-ca", "key": "ca.crt"}},
}
SOURCES: dict[str, dict[str, Any]] = {
    "hub": {"name": "c/d"},
    "claim": {"claim": {"name": "data", "path": "a.jsonl"}},
    "ConfigMap": {"configMap": {"name": "faq", "key": "train.jsonl"}},
    "uri": REMOTE,
}


def with_datasets(*entries: dict[str, Any], **spec: Any) -> dict[str, Any]:
    owner = job_object(datasets=list(entries), **spec)
    del owner["spec"]["dataset"]
    return owner


def build_both(owner: dict[str, Any]) -> list[dict[str, Any]]:
    job = parsed_job(owner)
    return [jobs.build_prepare_job(owner, job, IMAGE, None), jobs.build_train_job(owner, job, IMAGE)]


def read_mounts(made: dict[str, Any]) -> dict[str, str]:
    """Return the name of what is mounted at each path."""
    pod = made["spec"]["template"]["spec"]
    names = [volume["name"] for volume in pod["volumes"]]
    paths = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    assert len(names) == len(set(names))
    assert len(paths) == len(set(paths))
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    return {mount["mountPath"]: json.dumps(volumes[mount["name"]]) for mount in pod["containers"][0]["volumeMounts"]}


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("source", SOURCES)
def test_one_entry_makes_the_jobs_of_the_single_dataset(source: str, gpus: int) -> None:
    single = job_object(dataset=SOURCES[source], resources={"gpus": gpus})
    listed = with_datasets(SOURCES[source], resources={"gpus": gpus})
    assert [made["spec"] for made in build_both(listed)] == [made["spec"] for made in build_both(single)]


def test_each_source_is_mounted_once_at_a_path_of_its_own() -> None:
    preparing, training = build_both(
        with_datasets(
            {"claim": {"name": "data", "path": "a.jsonl"}},
            {"claim": {"name": "data", "path": "b.jsonl"}},
            {"claim": {"name": "more"}},
            {"configMap": {"name": "faq", "key": "train.jsonl"}},
            {"configMap": {"name": "faq", "key": "more.jsonl"}},
            {"configMap": {"name": "chats", "key": "train.jsonl"}},
            REMOTE,
            REMOTE | {"secret": {"name": "other-reader"}, "caBundle": {"configMap": {"name": "other-ca"}}},
            REMOTE | {"uri": "https://host/faq.jsonl", "caBundle": {"configMap": {"name": "faq"}}},
            resources={"gpus": 1},
            model={"claim": {"name": "data", "path": "model"}},
        )
    )
    expected = {
        "/claims/data": '"data"',
        "/claims/more": '"more"',
        "/configmaps/faq": '"faq"',
        "/configmaps/chats": '"chats"',
        "/configmaps/private-ca": '"private-ca"',
        "/configmaps/other-ca": '"other-ca"',
        "/secrets/reader": '"reader"',
        "/secrets/other-reader": '"other-reader"',
    }
    mounts = read_mounts(preparing)
    arguments = preparing["spec"]["template"]["spec"]["containers"][0]["args"]
    for path, name in expected.items():
        assert name in mounts[path]
        option = {"claims": "--claim", "configmaps": "--config-map", "secrets": "--secret"}[path.split("/")[1]]
        assert f"{option} {name.strip(chr(34))}={path}" in " ".join(arguments)
    assert len(arguments) == 2 * len(expected) + 4, "each once, --port and --termination-log"
    assert "reader" not in json.dumps(training["spec"])
    assert "private-ca" not in json.dumps(training["spec"])
    assert {path for path in expected if path.startswith("/claims")} <= read_mounts(training).keys()


def test_a_secret_of_any_dataset_needs_a_preparing_job() -> None:
    owner = with_datasets({"name": "c/d"}, REMOTE, resources={"gpus": 0})
    assert jobs.has_prepare_job(parsed_job(owner))
    assert {"name": "HONE_OFFLINE", "value": "1"} in build_both(owner)[1]["spec"]["template"]["spec"]["containers"][0][
        "env"
    ]


def test_a_volume_of_the_user_does_not_collide_with_a_config_map() -> None:
    entries = [{"configMap": {"name": name, "key": "train.jsonl"}} for name in ("one", "two", "three")]
    volumes = [{"name": f"dataset-{number}", "emptyDir": {}} for number in range(3)]
    for made in build_both(with_datasets(*entries, pod={"volumes": volumes})):
        names = [volume["name"] for volume in made["spec"]["template"]["spec"]["volumes"]]
        assert len(names) == len(set(names))
