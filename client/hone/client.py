"""The entry point of the client: fine-tune and serve, in a cluster or on this machine.

Modules that take long to import, such as the client of Kubernetes, are imported when they are needed.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hone.errors import ClientError
from hone.objects.names import JOB, SERVICE, Kind

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from hone_api.finetunejobs.spec import LoraOptions
    from hone_api.finetunejobs.training import TrainingArguments

    from hone.backends.backend import Backend
    from hone.jobs import FineTuneJob
    from hone.services import InferenceService
    from hone.specs.sources import DatasetSource, ModelSource


class Client:
    """Fine-tunes and serves in a namespace of a cluster, or with `local` on this machine.

    `namespace` and `context`: of the kubeconfig; left out: its current ones. `folder`: where `local` keeps its output;
    left out: the current folder. `claims`: folders of this machine that stand for claims, with `local`.
    """

    def __init__(
        self,
        *,
        local: bool = False,
        namespace: str | None = None,
        context: str | None = None,
        folder: "str | PathLike[str] | None" = None,
        claims: "Mapping[str, str | PathLike[str]] | None" = None,
    ) -> None:
        """Connect to the cluster. Raises ClientError without a usable kubeconfig."""
        self._backend = (
            _make_local(namespace, context, folder, claims)
            if local
            else _make_remote(namespace, context, folder, claims)
        )

    def train(
        self,
        *,
        model: "ModelSource",
        dataset: "DatasetSource | None" = None,
        name: str | None = None,
        lora: "LoraOptions | Mapping[str, Any] | DataclassInstance | None" = None,
        training: "TrainingArguments | Mapping[str, Any] | DataclassInstance | None" = None,
        **spec: Any,
    ) -> "FineTuneJob":
        """Start a FineTuneJob and return it at once.

        `model`: a name on the hub, a URI, with `local` also a folder, or the fields of `spec.model`. `dataset`: the
        same, or rows as dictionaries. `lora` and `training`: fields as dictionaries, or a `peft.LoraConfig` and a
        `trl.SFTConfig`. `spec`: any other field of the FineTuneJob's spec. `name`: left out: a new one.
        Raises InvalidSpecError for what Hone can't express, with the name of the field.
        """
        from hone.jobs import FineTuneJob
        from hone.specs.manifests import draft_job

        fields = {"lora": lora, "training": training, **spec}
        draft = draft_job(name, model, dataset, fields, is_local=self._backend.is_local)
        self._backend.apply(draft)
        return FineTuneJob(self._backend, draft.name)

    def serve(self, model: "FineTuneJob | ModelSource", *, name: str | None = None, **spec: Any) -> "InferenceService":
        """Start an InferenceService and return it at once; its calls wait until it answers.

        `model`: a FineTuneJob, a name on the hub, a URI, with `local` also a folder, or the fields of `spec.model`.
        `spec`: any other field of the InferenceService's spec. `name`: left out: that of the job, or a new one.
        Raises InvalidSpecError for what Hone can't express, with the name of the field.
        """
        from hone.jobs import FineTuneJob
        from hone.services import InferenceService
        from hone.specs.manifests import draft_service

        if isinstance(model, FineTuneJob):
            name, model = name or model.name, {"fineTuneJob": {"name": model.name}}
        draft = draft_service(name, model, spec, is_local=self._backend.is_local)
        self._backend.apply(draft)
        return InferenceService(self._backend, draft.name)

    def job(self, name: str) -> "FineTuneJob":
        """Return a FineTuneJob that exists. Raises ClientError."""
        from hone.jobs import FineTuneJob

        self._require(JOB, name)
        return FineTuneJob(self._backend, name)

    def service(self, name: str) -> "InferenceService":
        """Return an InferenceService that exists. Raises ClientError."""
        from hone.services import InferenceService

        self._require(SERVICE, name)
        return InferenceService(self._backend, name)

    def jobs(self) -> "list[FineTuneJob]":
        """Return the FineTuneJobs, by name."""
        from hone.jobs import FineTuneJob

        return [FineTuneJob(self._backend, body["metadata"]["name"]) for body in self._backend.list_objects(JOB)]

    def services(self) -> "list[InferenceService]":
        """Return the InferenceServices, by name."""
        from hone.services import InferenceService

        found = self._backend.list_objects(SERVICE)
        return [InferenceService(self._backend, body["metadata"]["name"]) for body in found]

    def __repr__(self) -> str:
        return f"Client of {self._backend.place}"

    def _require(self, kind: Kind, name: str) -> None:
        from hone.objects.names import require_name

        require_name("name", name, f"Give the name of a {kind.name}.")
        self._backend.read(kind, name)


def _make_local(
    namespace: str | None,
    context: str | None,
    folder: "str | PathLike[str] | None",
    claims: "Mapping[str, str | PathLike[str]] | None",
) -> "Backend":
    from hone.backends.local_backend import LocalBackend

    if namespace or context:
        raise ClientError("namespace and context belong to a cluster, and local=True to this machine", "Give one.")
    return LocalBackend(Path(folder or "."), {name: Path(path).absolute() for name, path in (claims or {}).items()})


def _make_remote(
    namespace: str | None,
    context: str | None,
    folder: "str | PathLike[str] | None",
    claims: "Mapping[str, str | PathLike[str]] | None",
) -> "Backend":
    if folder or claims:
        raise ClientError("folder and claims are for jobs on this machine", "Add local=True, or leave them out.")
    from hone.backends.cluster_backend import ClusterBackend
    from hone.kube import cluster

    return ClusterBackend(cluster.connect(context, namespace))
