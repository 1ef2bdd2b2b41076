"""Find Hone's objects, and their children and events, with the user's own rights."""

from collections.abc import Iterator, Mapping, Sequence

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from hone.errors import ClientError
from hone.kube import rest
from hone.kube.cluster import GROUP, VERSION, Cluster, Object, translate_errors
from hone.objects.names import JOB, KINDS, SERVICE, Kind, choose_kind, parse_reference
from hone.objects.timeline import Surroundings, find_event_time

# Newest pods whose events are read.
MOST_PODS = 10
PIECE_BYTES = 65536
# Newest events that are shown.
MOST_EVENTS = 100
# What makes pods, and may have none at the moment: where its lists are.
WORKLOADS = {
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
    "DaemonSet": "/apis/apps/v1/namespaces/{}/daemonsets",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "CronJob": "/apis/batch/v1/namespaces/{}/cronjobs",
}


def make_path(kind: Kind, namespace: str | None, name: str | None = None) -> str:
    """Return the path of an object, or of the list of a namespace, or of all namespaces."""
    below = f"namespaces/{namespace}/{kind.plural}" if namespace else kind.plural
    return f"/apis/{GROUP}/{VERSION}/{below}" + (f"/{name}" if name else "")


def list_kind(cluster: Cluster, kind: Kind, *, everywhere: bool = False) -> list[Object]:
    """Return the objects of a kind, by namespace and name. Raises ClientError."""
    namespace = None if everywhere else cluster.namespace
    with translate_errors(f"{kind.name}s in {f'namespace {namespace}' if namespace else 'all namespaces'}"):
        found = [{**body, "kind": kind.name} for body in rest.list_objects(cluster, make_path(kind, namespace))]
    return sorted(found, key=lambda body: (body["metadata"].get("namespace") or "", body["metadata"]["name"]))


def list_kinds(
    cluster: Cluster, kinds: Sequence[Kind], *, everywhere: bool = False
) -> tuple[list[Object], list[ClientError]]:
    """Return the objects of several kinds, and the refusals for kinds that the user has no right to list.

    Raises ClientError if all are refused, and for any other error.
    """
    found: list[Object] = []
    refusals = []
    for kind in kinds:
        try:
            found += list_kind(cluster, kind, everywhere=everywhere)
        except ClientError as error:
            if not isinstance(error.__cause__, ApiException) or error.__cause__.status != 403:
                raise
            refusals.append(error)
    if len(refusals) == len(kinds):
        raise refusals[0]
    return found, refusals


def find_object(cluster: Cluster, reference: str) -> tuple[Kind, Object]:
    """Return the object that a user means by NAME or KIND/NAME. Raises ClientError if none or two are meant."""
    wanted, name = parse_reference(reference)
    if wanted:
        return wanted, get_object(cluster, wanted, name)
    found: dict[Kind, Object] = {}
    for kind in KINDS:
        with translate_errors(f"{kind.name} {name} in namespace {cluster.namespace}"):
            try:
                found[kind] = rest.call_api(cluster, make_path(kind, cluster.namespace, name))
            except ApiException as error:
                if error.status == 403:
                    found_what = f"{kind.name} {name} can't be read: {rest.describe_error(error)}"
                    raise ClientError(
                        found_what, f"Name the kind: {JOB.short}/{name} or {SERVICE.short}/{name}."
                    ) from error
                if error.status != 404 or not is_api_known(error):
                    raise
    kind = choose_kind(name, list(found), cluster.namespace)
    return kind, found[kind]


def get_object(cluster: Cluster, kind: Kind, name: str) -> Object:
    """Return one object of a kind. Raises ClientError."""
    with translate_errors(f"{kind.name} {name} in namespace {cluster.namespace}"):
        found: Object = rest.call_api(cluster, make_path(kind, cluster.namespace, name))
    return found


def find_by_name(cluster: Cluster, kind: Kind, name: str) -> Object | None:
    """Return one object of a kind; None when there is none. Raises ClientError."""
    with translate_errors(f"{kind.name} {name} in namespace {cluster.namespace}"):
        try:
            found: Object = rest.call_api(cluster, make_path(kind, cluster.namespace, name))
        except ApiException as error:
            if error.status == 404 and is_api_known(error):
                return None
            raise
    return found


def is_api_known(error: ApiException) -> bool:
    """Return whether a 404 is about an object. Where the API itself is unknown, the answer is no Status."""
    return '"Status"' in str(error.body)


def list_pods(cluster: Cluster, labels: Mapping[str, str]) -> list[Object]:
    """Return the pods with these labels; with none, all of the namespace. Raises ClientError."""
    query = {"labelSelector": ",".join(f"{name}={value}" for name, value in labels.items())} if labels else {}
    with translate_errors(f"Pods in namespace {cluster.namespace}"):
        return list(rest.list_objects(cluster, f"/api/v1/namespaces/{cluster.namespace}/pods", query))


def list_workloads(cluster: Cluster) -> tuple[list[Object], list[str]]:
    """Return what makes pods in the namespace, with its kind, and a sentence for each kind that could not be read."""
    found: list[Object] = []
    unread = []
    for kind, path in WORKLOADS.items():
        try:
            listed = rest.list_objects(cluster, path.format(cluster.namespace))
            found += [each | {"kind": kind} for each in listed]
        except (ApiException, HTTPError) as error:
            unread.append(f"{kind}s can't be read: {rest.describe_error(error)}")
    return found, unread


def read_surroundings(cluster: Cluster, kind: Kind, body: Object, claim: str | None) -> Surroundings:
    """Return children and events. The result names what the user has no right to read."""
    unread: list[str] = []
    name, namespace = body["metadata"]["name"], cluster.namespace

    def attempt(what: str, path: str, query: Mapping[str, str]) -> list[Object]:
        try:
            return list(rest.list_objects(cluster, path, query))
        except (ApiException, HTTPError) as error:
            unread.append(f"{what}: {rest.describe_error(error)}")
            return []

    of_object = {"labelSelector": f"{kind.label}={name}"}
    workloads = ("Job", f"/apis/batch/v1/namespaces/{namespace}/jobs")
    if kind is not JOB:
        workloads = ("Deployment", f"/apis/apps/v1/namespaces/{namespace}/deployments")
    children = [each | {"kind": workloads[0]} for each in attempt(f"{workloads[0]}s", workloads[1], of_object)]
    pods = attempt("Pods", f"/api/v1/namespaces/{namespace}/pods", of_object)
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
    children += [each | {"kind": "Pod"} for each in pods[-MOST_PODS:]]
    if claim:
        named = {"fieldSelector": f"metadata.name={claim}"}
        claims = attempt("Claim", f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", named)
        children += [each | {"kind": "PersistentVolumeClaim"} for each in claims]
    uids = [each["metadata"].get("uid") for each in (body, *children)]
    events: list[Object] = []
    for uid in uids:
        if any(text.startswith("Events") for text in unread):
            break
        query = {"fieldSelector": f"involvedObject.uid={uid}"}
        events += attempt("Events", f"/api/v1/namespaces/{namespace}/events", query)
    return Surroundings(children, sorted(events, key=find_event_time)[-MOST_EVENTS:], unread)


def stream_log(cluster: Cluster, pod: str, query: Mapping[str, str], seconds: float) -> Iterator[bytes]:
    """Yield a log in pieces as they come. Raises ApiException and HTTPError, also after `seconds` of silence."""
    response = rest.open_stream(cluster, f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}/log", query, seconds)
    try:
        while piece := response.read1(PIECE_BYTES):
            yield piece
    finally:
        response.close()
