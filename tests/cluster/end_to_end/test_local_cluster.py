"""Features of a cluster on which Hone relies: claims, Services, DNS, counted GPUs, Pod Security, working images."""

import json
from typing import Any

import pytest
from base_images import OLDEST
from kube import CONNECT, Cluster, Images, claim, condition, phase, pod


def test_two_pods_share_a_claim_and_meet_through_a_service(cluster: Cluster, images: Images, namespace: str) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    serve = "echo hello >/data/file && exec python3 -m http.server -d /data 8000"
    probe = {"httpGet": {"path": "/file", "port": 8000}, "periodSeconds": 1}
    web = pod("web", images.operator, "sh", "-c", serve, claims={"shared": "/data"}, readinessProbe=probe)
    cluster.apply(claim("shared"), service, web, namespace=namespace)
    cluster.wait("pod", "web", condition("Ready"), namespace)

    ask = CONNECT + (
        "import json, pathlib, urllib.request as u\n"
        "connect('web', 80)\n"
        f"print(json.dumps([socket.gethostbyname('web.{namespace}.svc.cluster.local'),"
        " u.urlopen('http://web/file', timeout=20).read().decode(), pathlib.Path('/data/file').read_text()]))"
    )
    client = pod("client", images.operator, "python3", "-c", ask, claims={"shared": "/data"})
    printed = cluster.run_pod(client, namespace)

    address = cluster.wait("service", "web", bool, namespace)["spec"]["clusterIP"]
    assert json.loads(printed) == [address, "hello\n", "hello\n"]


def test_pods_that_leave_cost_no_other_pod_the_dns(cluster: Cluster, images: Images, namespace: str) -> None:
    lost = 20  # a slow machine answers late, but not that late
    ask = (
        "import pathlib, socket, time\n"
        "end = None\n"
        "while end is None or time.monotonic() < end:\n"
        "    begun = time.monotonic()\n"
        "    socket.gethostbyname('kubernetes.default.svc')\n"
        f"    assert time.monotonic() - begun < {lost} - 2, 'a question was lost: it is asked again after {lost} s'\n"
        "    if end is None and pathlib.Path('/tmp/gone').exists():\n"
        "        end = time.monotonic() + 2\n"
        "    time.sleep(0.05)\n"
    )
    leaving = [f"leaving-{number}" for number in range(8)]
    cluster.create(*[pod(name, images.operator, "sleep", "600") for name in leaving], namespace=namespace)
    for name in leaving:
        cluster.wait("pod", name, phase("Running"), namespace)
    asks = pod("asks", images.operator, "python3", "-c", ask)
    asks["spec"]["dnsConfig"] = {"options": [{"name": "timeout", "value": str(lost)}]}
    cluster.create(asks, namespace=namespace)
    cluster.wait("pod", "asks", phase("Running"), namespace)
    cluster.kubectl("delete", "pod", *leaving, "--wait=true", namespace=namespace)
    cluster.kubectl("exec", "asks", "--", "touch", "/tmp/gone", namespace=namespace)
    cluster.wait("pod", "asks", phase("Succeeded"), namespace, unless=phase("Failed"))


def test_gpus_are_counted(cluster: Cluster, images: Images, namespace: str) -> None:
    def asking(name: str, gpus: int) -> dict[str, Any]:
        return pod(name, images.operator, "sleep", "600", resources={"limits": {"amd.com/gpu": gpus}})

    allocatable = max(int(node["status"]["allocatable"].get("amd.com/gpu", 0)) for node in cluster.list("nodes"))
    assert allocatable > 0
    cluster.apply(asking("fits", 1), asking("too-many", allocatable + 1), namespace=namespace)
    cluster.wait("pod", "fits", phase("Running"), namespace)
    refused = cluster.wait("pod", "too-many", unschedulable, namespace)
    assert "Insufficient amd.com/gpu" in unschedulable(refused)


def test_the_restricted_level_refuses_a_pod_without_a_security_context(
    cluster: Cluster, images: Images, namespace: str
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
    cluster: Cluster, images: Images, namespace: str, image: str, statement: str
) -> None:
    say = f"{statement}; import os; print(os.getuid())"
    printed = cluster.run_pod(pod("it", getattr(images, image), "python3", "-c", say), namespace)
    assert printed.split()[-1] == "65532"


def test_the_runtime_image_has_the_commands(cluster: Cluster, images: Images, namespace: str) -> None:
    both = "hone-trainer --help >/dev/null && hone-server --help >/dev/null"
    cluster.run_pod(pod("it", images.runtime, "sh", "-c", both), namespace)


def test_the_runtime_image_has_the_oldest_base(cluster: Cluster, images: Images, namespace: str) -> None:
    say = "import sys, torch; print(*sys.version_info[:2], torch.__version__.partition('+')[0], torch.__file__)"
    printed = cluster.run_pod(pod("it", images.runtime, "python3", "-c", say), namespace)
    folder = f"/opt/python/lib/python{OLDEST.python}/site-packages"
    assert printed.split()[-4:] == [*OLDEST.python.split("."), OLDEST.torch, f"{folder}/torch/__init__.py"]


def unschedulable(found: dict[str, Any]) -> str:
    """Return the scheduler's message when it found no node, else an empty text."""
    conditions = found["status"].get("conditions", [])
    return next((each["message"] for each in conditions if each.get("reason") == "Unschedulable"), "")
