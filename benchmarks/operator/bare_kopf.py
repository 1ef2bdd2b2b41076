"""The shortest operator with kopf: a handler that makes a Job for each object. Needs IMAGE, KUBECONFIG."""

import os

import kopf
import kubernetes
from kubernetes.client import BatchV1Api

IMAGE = os.environ["IMAGE"]
kubernetes.config.load_kube_config()


@kopf.on.create("bench.hone.dev", "v1", "barejobs")
def create_job(spec: kopf.Spec, name: str, namespace: str, **_: object) -> dict[str, str]:
    container = {
        "name": "trainer",
        "image": IMAGE,
        "args": ["run", "--model", spec["model"]],
        "resources": {"limits": {"amd.com/gpu": "1"}},
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{name}-train"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }
    kopf.adopt(job)
    BatchV1Api().create_namespaced_job(namespace, job)
    return {"job": f"{name}-train"}
