"""A trainer that waits in the middle of its work, so that a test can act there, however fast it is.

Python imports the module `sitecustomize` at its start. The one here waits where the trainer makes a folder: by default
for the checkpoint of HELD_STEP, once for each job, so that the trainers that follow don't wait.
"""

from kube import Cluster
from training import Object, has_passed_step

HELD_STEP = 20
# Enough to continue after HELD_STEP.
STEPS = 60
IS_HELD = has_passed_step(HELD_STEP)
RELEASE = "/tmp/release"
# The image's own path follows.
_ENVIRONMENT = [{"name": "PYTHONPATH", "value": "/hold:/opt/hone"}]
_CODE = f"""
import os, pathlib, signal, sys, time

def hold(event, arguments):
    if event != "os.mkdir" or not str(arguments[0]).endswith("/@FOLDER"):
        return
    if os.environ.get("JOB_COMPLETION_INDEX", "0") != "@POD":
        return
    try:
        (pathlib.Path(arguments[0]).parents[1] / "logs/held").touch(exist_ok=False)
    except FileExistsError:
        return
    except FileNotFoundError:  # the folder is none of the output
        pass
    received = []
    def note(number, frame):
        received.append(number)
        before(number, frame)
    before = signal.signal(signal.SIGTERM, note)
    while not (received and @ENDS_AT_SIGNAL or os.path.exists("{RELEASE}")):
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, before)

sys.addaudithook(hold)
"""


def hold(
    made: Object, *, pod: int = 0, ends_at_signal: bool = True, folder: str = f"checkpoint-{HELD_STEP}"
) -> tuple[Object, Object]:
    """Return a ConfigMap, and the FineTuneJob whose trainer waits before it makes `folder` until `release`.

    `pod`: the index of the waiting pod, of several; its peers wait for it. `ends_at_signal`: whether a signal to stop
    ends the wait, too. The job must save a checkpoint at HELD_STEP.
    """
    name = f"hold-{made['metadata']['name']}"
    code = _CODE.replace("@POD", str(pod)).replace("@ENDS_AT_SIGNAL", str(ends_at_signal)).replace("@FOLDER", folder)
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"sitecustomize.py": code},
    }
    options = made["spec"]["pod"]
    held = {
        **options,
        "env": [*options["env"], *_ENVIRONMENT],
        "volumes": [{"name": "hold", "configMap": {"name": name}}],
        "volumeMounts": [{"name": "hold", "mountPath": "/hold"}],
    }
    return config_map, {**made, "spec": {**made["spec"], "pod": held}}


def release(cluster: Cluster, namespace: str, pod: str) -> None:
    """Let the trainer of this pod continue."""
    cluster.kubectl("exec", pod, "--", "touch", RELEASE, namespace=namespace)
