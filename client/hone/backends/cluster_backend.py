"""Jobs and services in a cluster, with the user's own rights."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from hone.artifacts import pull, target, transfer
from hone.backends.backend import Begin
from hone.errors import HoneError
from hone.kube import changes, job_watch, logs, lookup, port_forward
from hone.kube.cluster import Cluster
from hone.objects import log_target
from hone.objects.job_progress import has_succeeded, is_suspended
from hone.objects.names import JOB, SERVICE, Kind
from hone.objects.views import Object, require_artifact, require_available
from hone.progress import Curve
from hone.specs.manifests import Draft


class ClusterBackend:
    """A namespace of a cluster."""

    is_local = False

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def place(self) -> str:
        return f"namespace {self._cluster.namespace}"

    def apply(self, draft: Draft) -> Object:
        if draft.config_map is None:
            return changes.apply_object(self._cluster, draft.body)
        before = lookup.find_by_name(self._cluster, JOB, draft.name)
        rows = changes.own(draft.config_map, before) if before else draft.config_map
        made = changes.apply_object(self._cluster, rows)
        try:
            body = changes.apply_object(self._cluster, draft.body)
        except HoneError:
            if before is None:
                changes.delete_object(self._cluster, made)
            raise
        if before is None:
            changes.apply_object(self._cluster, changes.own(rows, body))  # they go with the job
        return body

    def read(self, kind: Kind, name: str) -> Object:
        return lookup.get_object(self._cluster, kind, name)

    def list_objects(self, kind: Kind) -> list[Object]:
        return lookup.list_kind(self._cluster, kind)

    def follow_job(self, name: str) -> Iterator[Object]:
        for body in job_watch.follow_job(self._cluster, name):
            yield body
            if has_succeeded(body) is not None or is_suspended(body):
                return

    def read_curves(self, name: str) -> dict[str, Curve]:
        return {}

    def read_log(self, kind: Kind, name: str, *, follow: bool) -> Iterator[str]:
        pods = lookup.list_pods(self._cluster, {kind.label: name})
        found = log_target.choose_target(self.read(kind, name), pods, rank=0, is_previous=False)
        yield from logs.follow_log(self._cluster, found) if follow else logs.read_log(self._cluster, found)

    def set_suspend(self, name: str, *, suspend: bool) -> str:
        return changes.set_suspend(self._cluster, name, suspend=suspend)[1]

    def delete(self, kind: Kind, name: str, *, with_claim: bool) -> None:
        planned = changes.plan_deletion(self._cluster, kind, self.read(kind, name), with_claim=with_claim)
        for body in planned.objects:
            changes.delete_object(self._cluster, body)

    def read_report(self, name: str) -> bytes:
        with transfer.open_session(self._cluster, self.read(JOB, name)) as session:
            return session.fetch_small(target.REPORT_FILE)

    def pull(self, name: str, folder: Path, begin: Begin) -> None:
        body = self.read(JOB, name)
        digest = require_artifact(body)["digest"]
        with target.lock_folder(folder), transfer.open_session(self._cluster, body) as session:
            pull.pull_artifact(session, folder, digest, begin)

    def open_engine(self, name: str) -> AbstractContextManager[str]:
        return self._forward(name)

    @contextmanager
    def _forward(self, name: str) -> Iterator[str]:
        require_available(self.read(SERVICE, name))
        with port_forward.forward_port(self._cluster, name) as address:
            yield f"{address}/v1"
