"""`make demo-cluster`: the quickstart on the local one-node Kubernetes, by helm, kubectl and the OpenAI client.

Its pods can't reach the hub, so the model is put into the cache on the claim before the FineTuneJob is applied.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from demo import HONE, ROOT, TUNED_NAME, console, free_port, provide_model, step, wait_until_healthy
from hone_api.finetunejobs.spec import FineTuneJob
from hone_operator.finetunejob.children import build_claim
from model_from_pypi import HUB_NAME
from openai import OpenAI
from questions import NEEDED, compare

QUICKSTART = Path("examples/quickstart")
LOCAL = Path("tests/cluster/local")
SYSTEM, NAMESPACE = "hone-system", "hone-demo"
LOADER = "model-loader"
FORWARD_LOG = Path("build/demo-port-forward.log")
UNPACK = (
    "import os, sys, tarfile; os.umask(0o002); "
    f"tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall('/claim/{NAMESPACE}/{TUNED_NAME}')"
)


def main() -> int:
    started = time.monotonic()
    os.chdir(ROOT)
    hf_home = Path(provide_model(download=True)["HF_HOME"])
    step("The cluster, Hone's images, and Hone by its Helm chart (the first time takes many minutes)")
    enter_cluster()
    runtime = install_hone()
    step(f"A fresh namespace {NAMESPACE}, with the model in the cache on the claim of {TUNED_NAME}")
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    kubectl("create", "namespace", NAMESPACE)
    kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    load_model(hf_home, runtime)
    step("kubectl apply of the FineTuneJob and the InferenceService")
    for name in ("finetunejob.yaml", "inferenceservice.yaml"):
        kubectl("apply", "-n", NAMESPACE, "-f", str(QUICKSTART / name))
    step(f"kubectl hone watch {TUNED_NAME}")
    if code := subprocess.run([HONE, "watch", TUNED_NAME, "-n", NAMESPACE]).returncode:
        return code
    kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", f"hisvc/{TUNED_NAME}", "--timeout=300s")
    kubectl("get", "-n", NAMESPACE, "ftj,hisvc")
    with forwarded() as url:
        step("Asking the base model and the tuned one the same five questions, through the OpenAI client")
        good = compare(OpenAI(base_url=url, api_key="unused"), HUB_NAME, TUNED_NAME, console)
    console.print(f"All of it took {time.monotonic() - started:.0f} s.")
    if not good:
        console.print(f"[red]Fewer than {NEEDED} answers of the tuned model are right: the demo failed.[/]")
        return 1
    step("Next, try it yourself:")
    console.print(f'  eval "$({LOCAL}/cluster env)"\n  .venv/bin/hone chat {TUNED_NAME} -n {NAMESPACE}')
    return 0


def enter_cluster() -> None:
    """Bring the local cluster up, and put its kubectl, helm and kubeconfig into this process's environment."""
    subprocess.run([LOCAL / "cluster", "up"], check=True)
    script = f'eval "$({LOCAL}/cluster env)" && printf "%s\\n%s" "$KUBECONFIG" "$PATH"'
    printed = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout
    os.environ["KUBECONFIG"], os.environ["PATH"] = printed.split("\n")


def install_hone() -> str:
    """Build the images of the present sources and install the chart with them. Returns the runtime image."""
    built = subprocess.run([LOCAL / "images", "build"], check=True, stdout=subprocess.PIPE, text=True).stdout
    operator, runtime = built.splitlines()[-2:]
    helm = ["helm", "upgrade", "--install", "hone", "charts/hone", "--namespace", SYSTEM, "--create-namespace"]
    images = f"operator.image={operator},runtime.image={runtime}"
    # The local node's GPUs are not real; without this value the job, which asks for one, would fail.
    values = ["--set-string", images, "--set", "runtime.requireGpus=false"]
    subprocess.run([*helm, *values, "--wait", "--timeout=180s"], check=True)
    return runtime


def load_model(hf_home: Path, image: str) -> None:
    """Make the job's claim as Hone would make it, and copy the hub cache at `hf_home` to where the trainer looks."""
    kubectl("apply", "-f", "-", stdin=json.dumps(build_job_claim()).encode())
    kubectl("apply", "-f", "-", stdin=json.dumps(loader_pod(image)).encode())
    kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", f"pod/{LOADER}", "--timeout=180s")
    archive = subprocess.Popen(["tar", "c", "-C", hf_home.parent, hf_home.name], stdout=subprocess.PIPE)
    unpack = ["kubectl", "exec", "-i", "-n", NAMESPACE, LOADER, "--", "python3", "-c", UNPACK]
    subprocess.run(unpack, stdin=archive.stdout, check=True)
    if archive.wait():
        sys.exit(f"tar could not read {hf_home}")
    kubectl("delete", "-n", NAMESPACE, f"pod/{LOADER}")


def build_job_claim() -> dict[str, Any]:
    """Return the claim that the operator would make for the job. Without its labels it would be somebody else's."""
    documents = yaml.safe_load_all((ROOT / QUICKSTART / "finetunejob.yaml").read_text())
    owner = next(each for each in documents if each["kind"] == "FineTuneJob")
    owner["metadata"] |= {"namespace": NAMESPACE, "uid": ""}
    return build_claim(owner, FineTuneJob.model_validate(owner))


def loader_pod(image: str) -> dict[str, object]:
    """Return a pod that waits with the claim mounted, as the user whom Hone's pods run as."""
    container = {
        "name": "main",
        "image": image,
        "command": ["sleep", "600"],
        "volumeMounts": [{"name": "claim", "mountPath": "/claim"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    user = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": TUNED_NAME}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": LOADER, "namespace": NAMESPACE}, "spec": spec}


@contextmanager
def forwarded() -> Iterator[str]:
    """Return the InferenceService's base URL through kubectl port-forward, while the context lasts."""
    port = free_port()
    command = ["kubectl", "port-forward", "-n", NAMESPACE, f"service/{TUNED_NAME}", f"{port}:80"]
    with FORWARD_LOG.open("w") as log:
        forward = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_healthy(forward, f"http://127.0.0.1:{port}/health", FORWARD_LOG)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        forward.terminate()
        forward.wait(timeout=30)


def kubectl(*arguments: str, stdin: bytes | None = None) -> None:
    """Run kubectl with its output shown. Raises CalledProcessError when it fails."""
    subprocess.run(["kubectl", *arguments], input=stdin, check=True)


if __name__ == "__main__":
    sys.exit(main())
