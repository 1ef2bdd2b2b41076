"""What Hone relies on in a cluster: claims, Services, DNS, GPUs that are counted, Pod Security, images that run."""

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cluster.conftest import Cluster, Images


def pod(name: str, image: str, *command: str, claim: str | None = None, **container: Any) -> dict[str, Any]:
    """A pod at the restricted level, with a read-only root, a writable /tmp and perhaps a claim at /data."""
    volumes = [{"name": "tmp", "emptyDir": {}}]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    if claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "data", "mountPath": "/data", "subPath": "some/folder"})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": list(command),
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": mounts,
                    **container,
                }
            ],
            "volumes": volumes,
        },
    }


def phase(*wanted: str) -> Any:
    return lambda found: found["status"].get("phase") in wanted


def test_two_pods_share_a_claim_and_meet_through_a_service(
    cluster: "Cluster", images: "Images", namespace: str
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    serve = "echo hello >/data/file && exec python3 -m http.server -d /data 8000"
    probe = {"httpGet": {"path": "/file", "port": 8000}, "periodSeconds": 1}
    web = pod("web", images.operator, "sh", "-c", serve, claim="shared", readinessProbe=probe)
    cluster.apply(claim, service, web, namespace=namespace)
    cluster.wait("pod", "web", lambda found: ready(found), namespace)

    ask = (
        "import json, pathlib, socket, urllib.request as u;"
        f"print(json.dumps([socket.gethostbyname('web.{namespace}.svc.cluster.local'),"
        " u.urlopen('http://web/file', timeout=20).read().decode(), pathlib.Path('/data/file').read_text()]))"
    )
    client = pod("client", images.operator, "python3", "-c", ask, claim="shared")
    cluster.apply(client, namespace=namespace)
    cluster.wait("pod", "client", phase("Succeeded"), namespace, unless=phase("Failed"))

    address = (cluster.get("service", "web", namespace) or {})["spec"]["clusterIP"]
    assert json.loads(cluster.kubectl("logs", "client", namespace=namespace)) == [address, "hello\n", "hello\n"]


def test_gpus_are_counted(cluster: "Cluster", images: "Images", namespace: str) -> None:
    def asking(name: str, gpus: int) -> dict[str, Any]:
        return pod(name, images.operator, "sleep", "600", resources={"limits": {"amd.com/gpu": gpus}})

    allocatable = max(int(node["status"]["allocatable"].get("amd.com/gpu", 0)) for node in cluster.list("nodes"))
    assert allocatable > 0
    cluster.apply(asking("fits", 1), asking("too-many", allocatable + 1), namespace=namespace)
    cluster.wait("pod", "fits", phase("Running"), namespace)
    refused = cluster.wait("pod", "too-many", unschedulable, namespace)
    assert "Insufficient amd.com/gpu" in unschedulable(refused)


def test_the_restricted_level_refuses_a_pod_without_a_security_context(
    cluster: "Cluster", images: "Images", namespace: str
) -> None:
    bad = pod("bad", images.operator, "true")
    del bad["spec"]["securityContext"]
    with pytest.raises(AssertionError, match='violates PodSecurity "restricted'):
        cluster.apply(bad, namespace=namespace)


@pytest.mark.parametrize(
    ("image", "statement"),
    [
        ("operator", "import hone_operator.main, kopf"),
        ("runtime", "import hone_trainer.main, hone_server.main, trl, torch; torch.ones(2).sum()"),
    ],
)
def test_an_image_runs_as_any_user_on_a_read_only_root(
    cluster: "Cluster", images: "Images", namespace: str, image: str, statement: str
) -> None:
    say = f"{statement}; import os; print(os.getuid())"
    cluster.apply(pod("it", getattr(images, image), "python3", "-c", say), namespace=namespace)
    cluster.wait("pod", "it", phase("Succeeded"), namespace, timeout=240, unless=phase("Failed"))
    assert cluster.kubectl("logs", "it", namespace=namespace).split()[-1] == "65532"


def test_the_runtime_image_has_the_commands(cluster: "Cluster", images: "Images", namespace: str) -> None:
    both = "hone-trainer --help >/dev/null && hone-server --help >/dev/null"
    cluster.apply(pod("it", images.runtime, "sh", "-c", both), namespace=namespace)
    cluster.wait("pod", "it", phase("Succeeded"), namespace, timeout=240, unless=phase("Failed"))


def ready(found: dict[str, Any]) -> bool:
    conditions = found["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def unschedulable(found: dict[str, Any]) -> str:
    """The scheduler's words when it found no place, else nothing."""
    conditions = found["status"].get("conditions", [])
    return next((each["message"] for each in conditions if each.get("reason") == "Unschedulable"), "")
