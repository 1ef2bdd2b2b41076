"""Pod settings of users are merged into Hone's pods, and the examples of the documentation are valid."""

from typing import Any

import pytest
from hone_api.pods.pod_options import PodOptions
from hone_api.schema.validation import validate_object
from hone_operator.pods.pod_levels import find_relaxations
from pod_page import EXAMPLES, JOBS, job_of


def pod_of(name: str, **pod: Any) -> dict[str, Any]:
    manifest = JOBS[name]
    spec = manifest["spec"] | {"pod": manifest["spec"]["pod"] | pod}
    found: dict[str, Any] = job_of(manifest | {"spec": spec})["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("manifest", EXAMPLES, ids=lambda one: one["metadata"]["name"])
def test_examples_are_valid(manifest: dict[str, Any]) -> None:
    assert validate_object(manifest) == []


def test_the_platform_sets_user_and_group_when_asked() -> None:
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod_of("openshift")["securityContext"].keys()
    assert pod_of("sidecar")["securityContext"]["runAsUser"] == 65532
    assert pod_of("nfs")["securityContext"]["runAsUser"] == 1000


def test_added_capabilities_leave_the_others_dropped() -> None:
    pod = pod_of("rdma-host")
    security = pod["containers"][0]["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert (security["runAsUser"], security["runAsNonRoot"]) == (0, False)
    assert not security["allowPrivilegeEscalation"]
    assert pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert pod["containers"][0]["resources"]["limits"]["rdma/hca"] == "1"


@pytest.mark.parametrize("prepares", [False, True])
def test_nics_and_their_networks_are_asked_for_at_the_restricted_level(prepares: bool) -> None:
    template = job_of(JOBS["rdma"], prepares=prepares)["spec"]["template"]
    [container] = template["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert (limits["amd.com/nic"], limits.get("amd.com/gpu")) == ("2", None if prepares else "8")
    assert template["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"].count("amd-host-device-nad") == 2
    assert find_relaxations(PodOptions.model_validate(JOBS["rdma"]["spec"]["pod"])) == []
    assert {"name": "NCCL_MIN_NCHANNELS", "value": "4"} in container["env"]
    assert [one["name"] for one in container["env"]].count("NCCL_MIN_NCHANNELS") == 1


def test_no_token_reaches_a_training_pod_by_env_from() -> None:
    container = pod_of("sidecar", envFrom=[{"secretRef": {"name": "all"}}])["containers"][0]
    assert {"name": "HF_TOKEN", "value": ""} in container["env"]


def test_sidecars_keep_the_restricted_level() -> None:
    [sidecar] = pod_of("sidecar")["initContainers"]
    assert sidecar["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
