"""The session with one job's claim that `pull` and `report` share: the pod, and streams that are opened again."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from hone import notices
from hone.artifacts import reader_pod
from hone.artifacts.receive import Advance, Cut, Request, receive_files
from hone.errors import ClientError
from hone.kube import lookup, rest
from hone.kube.cluster import Cluster, Object
from hone.objects import operators
from hone.objects.deletion import find_output_claim
from hone.objects.names import JOB

# Streams in a row that brought no byte, after which the transfer is given up.
MOST_FAILURES = 5
RETRY_SECONDS = 1.0
# The names of files in one request, which is a URL.
LONGEST_REQUEST = 2000


@dataclass(frozen=True)
class Session:
    """A running pod with a job's claim."""

    cluster: Cluster
    pod: str

    def fetch(self, requests: Callable[[], Mapping[str, Request]], advance: Advance) -> None:
        """Receive files until `requests` has none. A stream that was cut is opened again. Raises HoneError."""
        failures = 0
        while wanted := limit_request(requests()):
            before = sum(request.offset for request in wanted.values())
            try:
                self._receive(wanted, advance)
                failures = 0
            except Cut as cut:
                has_progress = sum(map(_measure_size, wanted.values())) > before
                failures = self._wait(cut, 1 if has_progress else failures + 1)

    def fetch_small(self, path: str) -> bytes:
        """Return the content of a file whose size is not known before. Raises HoneError, such as ArtifactMissing."""
        failures = 0
        with TemporaryDirectory(prefix="hone-") as folder:
            while True:
                place = Path(folder) / str(failures)
                try:
                    self._receive({path: Request(place, 0, None)}, lambda name, count: None)
                    return place.read_bytes()
                except Cut as cut:
                    failures = self._wait(cut, failures + 1)

    def _receive(self, wanted: Mapping[str, Request], advance: Advance) -> None:
        names = [f"{request.offset}:{path}" for path, request in wanted.items()]
        with closing(reader_pod.FileStream(self.cluster, self.pod, names)) as stream:
            receive_files(stream, wanted, advance)

    def _wait(self, cut: Cut, failures: int) -> int:
        if failures >= MOST_FAILURES:
            raise ClientError(
                f"the transfer from pod {self.pod} was cut: {cut}",
                "Run the same command again: it continues where it stopped.",
            ) from cut
        notices.report_hint(f"The transfer was cut ({cut}); continuing.")
        time.sleep(RETRY_SECONDS)
        return failures


def limit_request(requests: Mapping[str, Request]) -> dict[str, Request]:
    """Return the first requests whose names fit into one URL, at least one if there is any."""
    found: dict[str, Request] = {}
    length = 0
    for path, request in requests.items():
        length += len(path) + 20
        if found and length > LONGEST_REQUEST:
            break
        found[path] = request
    return found


@contextmanager
def open_session(cluster: Cluster, job: Object) -> Iterator[Session]:
    """Run a pod with the job's claim while the context lasts. Raises ClientError."""
    template = _read_template(cluster, job)
    default = None if template else _read_default_image(cluster)
    image = reader_pod.find_image(job, template, default)
    claim = _try_read(
        cluster, f"/api/v1/namespaces/{cluster.namespace}/persistentvolumeclaims/{find_output_claim(job)[0]}"
    )
    if claim == {}:
        raise ClientError(
            f"claim {find_output_claim(job)[0]} of FineTuneJob {job['metadata']['name']} does not exist",
            "Its artifact is gone: restore the claim, or run the job again.",
        )
    nodes = reader_pod.find_nodes(claim, _list_pods(cluster) if claim else [])
    name = reader_pod.make_name(job["metadata"]["name"])
    with reader_pod.open_pod(cluster, reader_pod.make_pod(name, job, image, template, nodes)) as pod:
        yield Session(cluster, pod)


def find_job(cluster: Cluster, name: str) -> Object:
    """Return a FineTuneJob. Raises ClientError."""
    return lookup.get_object(cluster, JOB, name)


def _measure_size(request: Request) -> int:
    try:
        return request.partial.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return request.offset


def _read_template(cluster: Cluster, job: Object) -> Object | None:
    path = f"/apis/batch/v1/namespaces/{cluster.namespace}/jobs/{job['metadata']['name']}-train"
    found: Object | None = ((_try_read(cluster, path) or {}).get("spec") or {}).get("template", {}).get("spec")
    return found


def _read_default_image(cluster: Cluster) -> str | None:
    for path in ("/apis/apps/v1/deployments", "/apis/apps/v1/namespaces/hone-system/deployments"):
        found = _try_read(cluster, path, {"labelSelector": operators.LABEL})
        if image := operators.find_images((found or {}).get("items") or []).get("runtime.image"):
            return image
    return None


def _list_pods(cluster: Cluster) -> list[Object]:
    try:
        return lookup.list_pods(cluster, {})
    except ClientError:
        return []


def _try_read(cluster: Cluster, path: str, query: Mapping[str, str] | None = None) -> Object | None:
    """Return an object; empty when it does not exist, None when it can't be read."""
    try:
        found: Object = rest.call_api(cluster, path, query)
    except ApiException as error:
        return {} if error.status == 404 else None
    except HTTPError:
        return None
    return found
