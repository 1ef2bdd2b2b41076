"""The Pod Security Admission of a real API server and the operator agree about the settings of users."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import api_server
from hone_api.finetunejobs.spec import FineTuneJob
from hone_operator.finetunejob import jobs
from hone_operator.pods.pod_levels import LEVELS
from kubernetes.client import ApiException, CoreV1Api

sys.path.append(str(Path(__file__).parents[2] / "unit"))

from pod_level_cases import CASES

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
ENFORCE = "pod-security.kubernetes.io/enforce"


@pytest.fixture(scope="module")
def core(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoreV1Api]:
    with api_server(tmp_path_factory.mktemp("levels"), flags=("--allow-privileged",)) as found:
        found.install_crds()
        client = CoreV1Api(found.client())
        for level in LEVELS:
            client.create_namespace({"metadata": {"name": level, "labels": {ENFORCE: level}}})
        yield client


def pod_of(options: dict[str, Any]) -> dict[str, Any]:
    owner = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "faq", "namespace": "team", "uid": "3f1c7a52-0000-4000-8000-000000000000"},
        "spec": {"model": {"name": "a/b"}, "dataset": {"name": "c/d"}, "lora": {}, "pod": options},
    }
    template = jobs.build_train_job(owner, FineTuneJob.model_validate(owner), "hone:1")["spec"]["template"]
    metadata = {"name": "faq", "annotations": template["metadata"].get("annotations", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def is_allowed(core: CoreV1Api, level: str, options: dict[str, Any]) -> bool:
    try:
        core.create_namespaced_pod(level, pod_of(options), dry_run="All", field_validation="Strict")
    except ApiException as error:
        said = str(json.loads(error.body)["message"])
        assert "violates PodSecurity" in said, said
        return False
    return True


@pytest.mark.parametrize(("options", "needed"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_levels_that_allow_a_pod_are_those_of_kubernetes(
    core: CoreV1Api, options: dict[str, Any], needed: str
) -> None:
    allowed = [level for level in LEVELS if is_allowed(core, level, options)]
    assert allowed == list(LEVELS[LEVELS.index(needed) :])
