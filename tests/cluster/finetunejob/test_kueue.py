"""FineTuneJobs under the real Kueue: one waits for quota, and one is preempted by a more important Job."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from held_training import IS_HELD, RELEASE, STEPS, hold
from kube import Cluster, Images, condition, pod, run
from training import Object, because, furnish, job, message, metrics

KUEUE = Path(__file__).parents[1] / "kueue"
NAMESPACE = "kueue-system"
GROUP = "kueue.x-k8s.io"
MANAGED = "hone.dev/test=kueue"
TRAIN_SECONDS = 300
QUOTA = "insufficient unused quota for amd.com/gpu"
QUEUED = because("Suspended", "Queued")


@pytest.fixture(scope="module")
def kueue(hone: Cluster) -> Iterator[Cluster]:
    """Yield the cluster with Kueue installed from its own chart."""
    printed = run(KUEUE / "build", env={**hone.env, "HONE_TEST_REGISTRY": hone.registry}, timeout=1800)
    image, chart = printed.splitlines()[-2:]
    repository, _, tag = image.rpartition(":")
    helm = ["helm", "upgrade", "--install", "kueue", chart, "--namespace", NAMESPACE, "--create-namespace"]
    place = f"controllerManager.manager.image.repository={repository},controllerManager.manager.image.tag={tag}"
    values = ["--values", f"{KUEUE}/values.yaml", "--set-string", place]
    run(*helm, *values, env=hone.env, timeout=240)
    # The pod fills a Secret that it mounts itself: a new pod has it at once, the old one only after a minute or two.
    hone.wait("secret", "kueue-webhook-server-cert", lambda found: "tls.crt" in found.get("data", {}), NAMESPACE)
    hone.kubectl("delete", "pod", "--all", namespace=NAMESPACE)  # the roll-out could be judged by the old one
    rollout = ("rollout", "status", "deployment/kueue-controller-manager", "--timeout=300s")
    hone.kubectl(*rollout, namespace=NAMESPACE, timeout=330)
    yield hone
    run("helm", "uninstall", "kueue", "--namespace", NAMESPACE, "--wait", env=hone.env, timeout=240)


@pytest.fixture(scope="module")
def lab(kueue: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace whose queue `team` has quota for one GPU, and the priorities `urgent` and `patient`."""
    shared = [
        new("ResourceFlavor", "default"),
        new("ClusterQueue", "one-gpu", cluster_queue(gpus=1)),
        new("WorkloadPriorityClass", "urgent", value=100),
        new("WorkloadPriorityClass", "patient", value=1),
    ]
    with kueue.fresh_namespace("kueue") as namespace:
        kueue.kubectl("label", "namespace", namespace, MANAGED)
        furnish(kueue, images, namespace)
        kueue.apply(*shared)
        kueue.create(new("LocalQueue", "team", {"clusterQueue": "one-gpu"}), namespace=namespace)
        yield namespace
    # Kueue removes its finalizers only while it runs.
    kueue.wait_gone("namespace", namespace, timeout=300)
    for each in reversed(shared):
        kueue.kubectl("delete", f"{each['kind']}.{GROUP}", each["metadata"]["name"])


def new(kind: str, name: str, spec: Object | None = None, **fields: Any) -> Object:
    made = {"apiVersion": f"{GROUP}/v1beta2", "kind": kind, "metadata": {"name": name}, **fields}
    return made if spec is None else made | {"spec": spec}


def cluster_queue(gpus: int) -> Object:
    quotas = [{"name": "amd.com/gpu", "nominalQuota": gpus}]
    return {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [
            {"coveredResources": ["amd.com/gpu"], "flavors": [{"name": "default", "resources": quotas}]},
        ],
    }


def queued_job(name: str, *, steps: int = 4, **labels: str) -> Object:
    """Return a FineTuneJob for one fake GPU: the trainer uses the CPU."""
    made = job(name, steps=steps, resources={"gpus": 1, "sharedMemory": "64Mi"})
    made["metadata"]["labels"] = queued(**labels)
    return made


def queued(**labels: str) -> dict[str, str]:
    return {f"{GROUP}/queue-name": "team"} | {f"{GROUP}/{name}".replace("_", "-"): v for name, v in labels.items()}


def urgent_job(name: str, image: str) -> Object:
    """Return a plain Job that holds a GPU until its pod has the file RELEASE."""
    limits = {"limits": {"amd.com/gpu": 1}}
    template = {
        "spec": pod(name, image, "sh", "-c", f"until test -e {RELEASE}; do sleep 0.2; done", resources=limits)["spec"]
    }
    metadata = {"name": name, "labels": queued(priority_class="urgent")}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}


def test_of_two_jobs_with_quota_for_one_the_second_waits_for_the_first(kueue: Cluster, lab: str) -> None:
    kueue.create(queued_job("first", steps=100_000), namespace=lab)
    kueue.wait("finetunejob", "first", condition("Running"), lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    kueue.create(queued_job("second"), namespace=lab)

    waiting = kueue.wait("finetunejob", "second", QUEUED, lab, timeout=TRAIN_SECONDS, unless=condition("Running"))
    assert waiting["status"]["stage"] == "Suspended"
    kueue.wait(
        "finetunejob",
        "second",
        lambda found: QUOTA in message(found, "Suspended"),
        lab,
        timeout=200,
        unless=condition("Running"),
    )
    # Only now may the first give its quota back: how fast it trains decides nothing.
    kueue.kubectl("patch", "finetunejob", "first", "--type=merge", '--patch={"spec": {"suspend": true}}', namespace=lab)
    second = kueue.wait("finetunejob", "second", condition("Succeeded"), lab, timeout=TRAIN_SECONDS)
    assert condition("Suspended", "False")(second)
    kueue.wait("finetunejob", "first", because("Suspended", "Suspended"), lab)
    kueue.kubectl("delete", "finetunejob", "first", namespace=lab)


def test_a_preempted_job_saves_a_checkpoint_and_resumes_later(kueue: Cluster, lab: str, images: Images) -> None:
    kueue.create(*hold(queued_job("patient", steps=STEPS, priority_class="patient")), namespace=lab)
    kueue.wait("finetunejob", "patient", IS_HELD, lab, timeout=TRAIN_SECONDS, unless=condition("Failed"))
    kueue.create(urgent_job("urgent", images.runtime), namespace=lab)

    gave_way = kueue.wait("finetunejob", "patient", QUEUED, lab, timeout=TRAIN_SECONDS, unless=condition("Succeeded"))
    assert gave_way["status"]["stage"] == "Suspended"
    kueue.wait("job", "urgent", lambda found: found.get("status", {}).get("ready"), lab)
    kueue.kubectl("exec", "job/urgent", "--", "touch", RELEASE, namespace=lab)
    kueue.wait("job", "urgent", condition("Complete"), lab)
    done = kueue.wait(
        "finetunejob", "patient", condition("Succeeded"), lab, timeout=TRAIN_SECONDS, unless=condition("Failed")
    )

    steps = [line["step"] for line in metrics(kueue, lab, "patient") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert done["status"]["restarts"] == 1
