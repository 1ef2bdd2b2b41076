"""The pod that sends files of an output claim: its manifest, its start, and its streams.

It runs with the user's own rights, at the Pod Security level `restricted`, in the job's runtime image, with the claim
mounted read-only. It is deleted at the end, also after Ctrl-C; if that is impossible it ends after a minute.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hone_api.layout import make_artifact_path
from hone_api.reasons import ARTIFACT_MISSING, HoneError
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError
from websocket import ABNF, WebSocketException

from hone import notices
from hone.artifacts import pod_script
from hone.artifacts.receive import Cut
from hone.errors import ClientError
from hone.kube import exec_socket, rest, temporary_pod
from hone.kube.cluster import Cluster, Object, explain_error, translate_errors
from hone.objects.deletion import find_output_claim, find_pod_claims

CONTAINER, LABEL, SCRIPT = "reader", "hone.dev/reader", "HONE_SCRIPT"
COMMAND = ["python3", "-I", "-c", f"import os; exec(os.environ['{SCRIPT}'])"]
# The longest time of the pod, and until it runs: the image may have to be pulled.
LONGEST_SECONDS = 24 * 3600
START_SECONDS = 900.0
POLL_SECONDS = 1.0
# Without a byte for this long a stream counts as cut.
SILENCE_SECONDS = 60.0
LONGEST_ERROR_BYTES = 4096
USER = 65532
IDENTITY = ("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups", "fsGroupChangePolicy", "seLinuxOptions")
STDOUT, STDERR, STATUS = 1, 2, 3


def make_pod(name: str, job: Object, image: str, template: Object | None, nodes: Sequence[str]) -> Object:
    """Return the manifest. `template`: the pod spec of the trainer, for its user, tolerations and pull secrets.

    `nodes`: the only nodes that can mount the claim; none: any.
    """
    metadata = job["metadata"]
    like = template or {"securityContext": {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}}
    security = {key: value for key, value in (like.get("securityContext") or {}).items() if key in IDENTITY}
    if security.get("runAsUser") == 0:
        security["runAsUser"] = USER
    limits = {"cpu": "1", "memory": "256Mi", "ephemeral-storage": "64Mi"}
    folder = make_artifact_path(metadata["namespace"], metadata["name"])
    spec: Object = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LONGEST_SECONDS,
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {**security, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": like.get("tolerations") or [],
        "imagePullSecrets": like.get("imagePullSecrets") or [],
        "containers": [
            {
                "name": CONTAINER,
                "image": image,
                "command": [*COMMAND, "wait"],
                "env": [{"name": SCRIPT, "value": Path(pod_script.__file__).read_text()}],
                "resources": {"requests": limits | {"cpu": "50m", "memory": "64Mi"}, "limits": limits},
                "securityContext": temporary_pod.CONTAINER_SECURITY,
                "volumeMounts": [{"name": "claim", "mountPath": pod_script.ROOT, "subPath": folder, "readOnly": True}],
            }
        ],
        "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": find_output_claim(job)[0]}}],
    }
    if nodes:
        fields = [{"key": "metadata.name", "operator": "In", "values": [node]} for node in nodes]  # each takes one name
        terms = {"nodeSelectorTerms": [{"matchFields": [each]} for each in fields]}
        spec["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    labels = {LABEL: metadata["name"], "app.kubernetes.io/managed-by": "hone-cli"}
    about = {"name": name, "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec}


def find_nodes(claim: Object | None, pods: Sequence[Object]) -> list[str]:
    """Return the nodes of the running pods that mount a claim which several nodes can't mount; none: any node fits."""
    modes = ((claim or {}).get("spec") or {}).get("accessModes") or []
    if claim is None or {"ReadWriteMany", "ReadOnlyMany"} & set(modes):
        return []
    name = claim["metadata"]["name"]
    using = [
        pod for pod in pods if name in find_pod_claims(pod) and (pod.get("status") or {}).get("phase") == "Running"
    ]
    return sorted({pod["spec"]["nodeName"] for pod in using if pod["spec"].get("nodeName")})


def find_image(job: Object, template: Object | None, default: str | None) -> str:
    """Return the job's runtime image: its trainer's, spec.pod.image, or the operator's default. Raises ClientError."""
    for container in (template or {}).get("containers") or []:
        if container.get("name") == "trainer":
            return str(container["image"])
    named = ((job.get("spec") or {}).get("pod") or {}).get("image")
    if found := named or default:
        return str(found)
    name = job["metadata"]["name"]
    raise ClientError(
        f"the runtime image of FineTuneJob {name} is unknown: its Job was removed, and the operator can't be read",
        "Ask for the right to get deployments.apps in the namespace of Hone's operator.",
    )


@contextmanager
def open_pod(cluster: Cluster, body: Object) -> Iterator[str]:
    """Run the pod while the context lasts, and yield its name. Raises ClientError when it does not run."""
    name, place = body["metadata"]["name"], f"/api/v1/namespaces/{cluster.namespace}/pods"
    what = f"pod {name} in namespace {cluster.namespace}"
    may_exist = False
    with temporary_pod.interrupt_on_signals():
        try:
            with translate_errors(what):
                _require_rights(cluster)
                may_exist = True
                try:
                    rest.call_api(cluster, place, method="POST", body=body)
                except (ApiException, HTTPError) as error:
                    may_exist = not temporary_pod.is_final(error)
                    raise
                notices.report_hint(f"Pod {name} mounts claim {_find_claim(body)} read-only …")
                _await_running(cluster, f"{place}/{name}", name)
            yield name
        finally:
            if may_exist:
                temporary_pod.delete_pod(cluster, place, name)


def make_name(job: str) -> str:
    """Return a new name for a pod, chosen here, so that the pod can be deleted even without the API server's answer."""
    return f"hone-pull-{job[:40]}-{uuid.uuid4().hex[:8]}"


def _find_claim(body: Object) -> str:
    return str(next(iter(find_pod_claims(body))))


def _require_rights(cluster: Cluster) -> None:
    for verbs, resource in ((temporary_pod.POD_VERBS, "pods"), (("get", "create"), "pods/exec")):
        missing = temporary_pod.find_missing_rights(cluster, verbs, resource)
        if missing and not (resource == "pods/exec" and len(missing) < len(verbs)):
            raise ClientError(
                f"you lack the right to {', '.join(missing)} {resource} in namespace {cluster.namespace}",
                "Ask for it: the ClusterRole edit has it. Or copy the files from the claim with a pod of your own.",
            )


def _await_running(cluster: Cluster, path: str, name: str) -> None:
    deadline, shown = time.monotonic() + START_SECONDS, ""
    while True:
        try:
            pod = rest.call_api(cluster, path)
        except (ApiException, HTTPError) as error:
            if temporary_pod.is_final(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
            continue
        phase = (pod.get("status") or {}).get("phase")
        if phase == "Running":
            return
        pending = temporary_pod.describe_pending(pod, CONTAINER)
        hopeless = temporary_pod.judge_waiting(pod, CONTAINER)
        if hopeless or phase in ("Succeeded", "Failed") or time.monotonic() > deadline:
            why = ": ".join(hopeless) if hopeless else pending
            raise ClientError(f"pod {name} does not run: {why}", "Remove the cause, and run the command again.")
        if pending != shown and "PodScheduled" not in pending:
            notices.report_hint(f"Waiting for the pod: {pending}")
            shown = pending
        time.sleep(POLL_SECONDS)


class FileStream:
    """The tar stream of files that the pod sends, as a file to read. Every read raises Cut when the way is broken.

    Frames are read one by one: the client's own buffers would grow with the size of a file.
    """

    def __init__(self, cluster: Cluster, pod: str, wanted: Sequence[str]) -> None:
        try:
            self._socket = exec_socket.open_exec(cluster, pod, CONTAINER, [*COMMAND, "send", *wanted])
        except ApiException as error:
            if error.status in (401, 403):
                raise explain_error(f"exec in pod {pod}", error) from error
            raise Cut(rest.describe_error(error)) from error
        except (WebSocketException, OSError) as error:
            raise Cut(str(error) or type(error).__name__) from error
        self._socket.settimeout(SILENCE_SECONDS)
        self._left = b""
        self._error = b""
        self._has_ended = False

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end. Raises Cut, and HoneError ArtifactMissing for a missing file."""
        while not self._left and not self._has_ended:
            self._read_frame()
        found, self._left = self._left[:size], self._left[size:]
        return found

    def close(self) -> None:
        """Close the connection, which ends the sender."""
        self._socket.close()

    def _read_frame(self) -> None:
        try:
            code, frame = self._socket.recv_data_frame(True)
        except (WebSocketException, OSError) as error:
            raise Cut(str(error) or type(error).__name__) from error
        if code == ABNF.OPCODE_CLOSE:
            self._has_ended = True
        elif code in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) and frame.data:
            channel, data = frame.data[0], frame.data[1:]
            if channel == STDOUT:
                self._left = data
            elif channel == STDERR:
                self._error = (self._error + data)[:LONGEST_ERROR_BYTES]
            elif channel == STATUS and b'"Success"' not in data:
                raise self._explain(data)

    def _explain(self, status: bytes) -> Exception:
        text = self._error.decode(errors="replace").strip()
        if f'"{pod_script.MISSING}"'.encode() in status and text:
            return HoneError(ARTIFACT_MISSING, f"The output claim has no {text}")
        return Cut(text or status.decode(errors="replace"))
