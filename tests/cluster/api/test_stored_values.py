"""A real API server stores false and 0 as drift.py expects, so that an unchanged child is not written again.

The fields come from pod_schema.json. A new field there needs a place in PLACES.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from apiserver import ROOT, ApiServer
from hone_api.finetunejobs.spec import FineTuneJob
from hone_operator.finetunejob import jobs
from hone_operator.objects.drift import _FALSE_LEFT_OUT, contains_fields
from kubernetes.client import ApiException, BatchV1Api

sys.path.append(str(Path(__file__).parents[2] / "unit"))

from pod_cases import ACCEPTED, affinity, env, init, mount, pod, sidecar, spread, volume

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
SCHEMA = json.loads((ROOT / "crds/hone_api/pods/pod_schema.json").read_text())
Spec = dict[str, Any]
ITEM = {"key": "k", "path": "p"}
ISCSI = {"targetPortal": "1.2.3.4", "iqn": "iqn.2001-04.com.example:a", "lun": 1}


def projected(kind: str) -> Any:
    return lambda **f: volume(projected={"sources": [{kind: f}]})


# A spec with each kind of part, by the name of its schema.
PLACES: dict[str, Any] = {
    "CSIVolumeSource": lambda **f: volume(csi={"driver": "a.b", **f}),
    "ConfigMapEnvSource": lambda **f: init(envFrom=[{"configMapRef": {"name": "a", **f}}]),
    "ConfigMapKeySelector": lambda **f: env(configMapKeyRef={"name": "a", "key": "k", **f}),
    "ConfigMapProjection": lambda **f: projected("configMap")(name="a", **f),
    "ConfigMapVolumeSource": lambda **f: volume(configMap={"name": "a", **f}),
    "ContainerPort": lambda **f: sidecar(ports=[{"containerPort": 9000, **f}]),
    "DownwardAPIVolumeFile": lambda **f: volume(
        downwardAPI={"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.name"}, **f}]}
    ),
    "DownwardAPIVolumeSource": lambda **f: volume(downwardAPI={"items": [], **f}),
    "FCVolumeSource": lambda **f: volume(fc={"targetWWNs": ["5"], "lun": 1, **f}),
    "GRPCAction": lambda **f: sidecar(livenessProbe={"grpc": {"port": 1, **f}}),
    "ISCSIVolumeSource": lambda **f: volume(iscsi=ISCSI | f),
    "KeyToPath": lambda **f: volume(configMap={"name": "a", "items": [ITEM | f]}),
    "NFSVolumeSource": lambda **f: volume(nfs={"server": "s", "path": "/p", **f}),
    "PersistentVolumeClaimVolumeSource": lambda **f: volume(persistentVolumeClaim={"claimName": "c", **f}),
    "PodSecurityContext": lambda **f: pod(securityContext=f),
    "PodSpec": pod,
    "PreferredSchedulingTerm": lambda **f: affinity(
        "nodeAffinity",
        "preferred",
        [{"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}, **f}],
    ),
    "Probe": lambda **f: sidecar(livenessProbe={"exec": {"command": ["a"]}, **f}),
    "ProjectedVolumeSource": lambda **f: volume(projected={"sources": [{"secret": {"name": "a"}}], **f}),
    "SecretEnvSource": lambda **f: init(envFrom=[{"secretRef": {"name": "a", **f}}]),
    "SecretKeySelector": lambda **f: env(secretKeyRef={"name": "a", "key": "k", **f}),
    "SecretProjection": lambda **f: projected("secret")(name="a", **f),
    "SecretVolumeSource": lambda **f: volume(secret={"secretName": "a", **f}),
    "SecurityContext": lambda **f: init(securityContext=f),
    "ServiceAccountTokenProjection": lambda **f: projected("serviceAccountToken")(path="p", **f),
    "SleepAction": lambda **f: sidecar(lifecycle={"preStop": {"sleep": {"seconds": 1, **f}}}),
    "TopologySpreadConstraint": spread,
    "VolumeMount": lambda **f: mount(**f),
    "WeightedPodAffinityTerm": lambda **f: affinity(
        "podAffinity", "preferred", [{"weight": 1, "podAffinityTerm": {"topologyKey": "a"}, **f}]
    ),
}
ZERO = {"boolean": False, "integer": 0}
FIELDS = [
    (kind, name, of["type"])
    for kind, schema in SCHEMA.items()
    for name, of in schema["properties"].items()
    if of.get("type") in ZERO
]


def stored(crd_server: ApiServer, spec: Spec) -> tuple[Spec, Spec]:
    """Return Hone's Job, and the Job as the API server stores it. Raises ApiException when it refuses."""
    spec = {"model": {"name": "a/b"}, "dataset": {"name": "c/d"}, "lora": {}} | spec
    metadata = {"name": "faq", "namespace": "default", "uid": "3f1c7a52-0000-4000-8000-000000000000"}
    owner = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": spec}
    job = jobs.build_train_job(owner, FineTuneJob.model_validate(owner), "registry.invalid/hone:1")
    client = BatchV1Api(crd_server.client())
    answer = client.create_namespaced_job("default", job, dry_run="All", _preload_content=False)
    return job, json.loads(answer.data)


def values_of(body: Any, name: str) -> list[Any]:
    """Return the values of all fields of this name."""
    if isinstance(body, list):
        return [value for item in body for value in values_of(item, name)]
    if not isinstance(body, dict):
        return []
    return ([body[name]] if name in body else []) + [v for part in body.values() for v in values_of(part, name)]


@pytest.mark.parametrize(("kind", "name", "type_"), FIELDS)
def test_a_field_that_is_false_or_zero_is_no_drift(crd_server: ApiServer, kind: str, name: str, type_: str) -> None:
    spec = PLACES[kind](**{name: ZERO[type_]})
    try:
        job, found = stored(crd_server, spec)
    except (ApiException, ValueError):
        assert type_ == "integer", f"{kind}.{name} false is refused: correct its place"
        return
    assert contains_fields(found, job)
    if type_ == "boolean":
        given, kept = values_of(job, name), values_of(found, name)
        is_left_out = kept.count(False) < given.count(False)
        assert name in _FALSE_LEFT_OUT or not is_left_out


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_a_pod_can_be_is_no_drift(crd_server: ApiServer, name: str) -> None:
    job, found = stored(crd_server, ACCEPTED[name])
    assert contains_fields(found, job)
