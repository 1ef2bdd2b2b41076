"""The types of pods are those of the API server, which accepts Hone's pods and refuses the same faults."""

from typing import Any

import pytest
from apiserver import ApiServer
from bad_manifests import BAD
from hone_api.schema.crd import KINDS
from kubernetes.client import ApiException, BatchV1Api, CustomObjectsApi
from pod_page import EXAMPLES, JOBS, job_of
from pod_schema import FILE, read_openapi, text

OF_PODS = [bad for bad in BAD if "spec.pod" in str(bad) or "spec.resources" in str(bad)]


def create(crd_server: ApiServer, manifest: dict[str, Any]) -> None:
    plural = KINDS[manifest["kind"]].PLURAL
    objects = CustomObjectsApi(crd_server.client())
    where = ("hone.dev", "v1alpha1", "default", plural)
    objects.create_namespaced_custom_object(*where, manifest, dry_run="All", field_validation="Strict")


def test_file_is_what_the_api_server_publishes(crd_server: ApiServer) -> None:
    assert FILE.read_text() == text(read_openapi(crd_server)), "run `make pod-schema`"


def test_examples_are_accepted(crd_server: ApiServer) -> None:
    for manifest in EXAMPLES:
        create(crd_server, manifest)


def test_faults_are_refused_with_the_sentence(crd_server: ApiServer) -> None:
    assert len(OF_PODS) > 20
    for bad in OF_PODS:
        with pytest.raises(ApiException) as refused:
            create(crd_server, bad.manifest())
        assert bad.sentence in str(refused.value.body).replace('\\"', '"'), bad


@pytest.mark.parametrize("name", JOBS)
def test_jobs_are_accepted(crd_server: ApiServer, name: str) -> None:
    for prepares in (False, True):
        job = job_of(JOBS[name], prepares=prepares)
        BatchV1Api(crd_server.client()).create_namespaced_job("default", job, dry_run="All", field_validation="Strict")
