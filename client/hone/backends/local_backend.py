"""Jobs and services on this machine: the programs that run in the cluster, as child processes."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import yaml
from hone_api.artifacts.manifest import read_manifest
from hone_api.io.durable_files import write_atomically
from hone_api.layout import MANIFEST, METRICS_LOG

from hone.artifacts import target
from hone.artifacts.target import REPORT_FILE, Sizes
from hone.backends.backend import Begin
from hone.errors import ClientError
from hone.local import command_lines, requirements
from hone.local.engine_process import EngineProcess
from hone.local.job_status import PLACE, make_status
from hone.local.log_file import read_lines
from hone.local.trainer_process import TrainerProcess, format_now
from hone.objects.deletion import find_service_jobs
from hone.objects.names import JOB, Kind
from hone.objects.suspension import plan_change
from hone.objects.views import Object, require_artifact, require_available
from hone.progress import Curve
from hone.specs.manifests import Draft

# Below the folder of the client: what is known of its jobs and services.
STATE = ".hone"
POLL_SECONDS = 0.2


class LocalBackend:
    """A folder of this machine. The output of a job is the folder of its name, as `hone run` makes it."""

    is_local = True

    def __init__(self, folder: Path, claims: Mapping[str, Path]) -> None:
        self._folder = folder.absolute()
        self._claims = claims
        self._engines: dict[str, EngineProcess] = {}

    @property
    def place(self) -> str:
        return f"folder {self._folder}"

    def apply(self, draft: Draft) -> Object:
        return self._start_job(draft) if draft.body["kind"] == JOB.name else self._start_service(draft)

    def read(self, kind: Kind, name: str) -> Object:
        return self._read_job(name) if kind is JOB else self._read_service(name)

    def list_objects(self, kind: Kind) -> list[Object]:
        if kind is not JOB:
            return [self._read_service(name) for name in sorted(self._engines)]
        folders = sorted((self._folder / STATE / kind.plural).glob("*/"))
        return [self._read_job(folder.name) for folder in folders if self._trainer(folder.name).exists]

    def follow_job(self, name: str) -> Iterator[Object]:
        last = None
        while True:
            is_running = self._trainer(name).is_running()
            body = self._read_job(name)
            if body != last:
                yield body
            last = body
            if not is_running:
                return
            time.sleep(POLL_SECONDS)

    def read_curves(self, name: str) -> dict[str, Curve]:
        found: dict[str, Curve] = {}
        try:
            lines = (self._folder / name / METRICS_LOG).read_text(encoding="utf-8").splitlines()
        except OSError:
            return found
        for line in lines:
            try:
                values = json.loads(line)
                step = int(values.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError):  # the line is being written
                continue
            for key, value in values.items():
                if isinstance(value, int | float):
                    found.setdefault(key, []).append((step, float(value)))
        return found

    def read_log(self, kind: Kind, name: str, *, follow: bool) -> Iterator[str]:
        if kind is JOB:
            self._require_job(name)
            yield from self._trainer(name).read_log(follow=follow)
        else:
            engine = self._find_engine(name)
            yield from read_lines(engine.log, lambda: follow and engine.read_exit_code() is None)

    def set_suspend(self, name: str, *, suspend: bool) -> str:
        is_change, message = plan_change(self._read_job(name), suspend=suspend)
        trainer = self._trainer(name)
        if is_change and suspend:
            trainer.stop()
        elif is_change:
            trainer.start_again()
        return message

    def delete(self, kind: Kind, name: str, *, with_claim: bool) -> None:
        if kind is JOB:
            self._require_job(name)
            self._trainer(name).stop()
            self._trainer(name).remove(with_output=with_claim)
        else:
            self._find_engine(name).stop()
            del self._engines[name]

    def read_report(self, name: str) -> bytes:
        self._require_job(name)
        place = self._folder / name / REPORT_FILE
        if not place.is_file():
            raise ClientError(f"FineTuneJob {name} has no report yet", "It is written when the job has succeeded.")
        return place.read_bytes()

    def pull(self, name: str, folder: Path, begin: Begin) -> None:
        require_artifact(self._read_job(name))
        source = self._folder / name
        manifest = read_manifest(source)
        target.check_names(manifest)
        with target.lock_folder(folder):
            missing = target.find_missing(folder, manifest)
            total = sum(each.size for each in manifest.files.values())
            left = sum(manifest.files[path].size for path in missing)
            advance = begin(Sizes(total, total - left))
            for path in missing:
                shutil.copyfile(source / path, target.make_partial_path(folder, path, manifest.files[path]))
                target.finish_file(folder, path, manifest.files[path])
                advance(path, manifest.files[path].size)
            write_atomically(folder / MANIFEST, (source / MANIFEST).read_bytes())  # as the last file

    def open_engine(self, name: str) -> AbstractContextManager[str]:
        require_available(self._read_service(name))
        return nullcontext(f"{self._find_engine(name).address}/v1")

    def _start_job(self, draft: Draft) -> Object:
        requirements.require_modules(*requirements.TRAINER)
        documents = [draft.config_map, draft.body] if draft.config_map else [draft.body]
        self._trainer(draft.name).start(documents, {**self._claims, **draft.claims})
        return self._read_job(draft.name)

    def _read_job(self, name: str) -> Object:
        self._require_job(name)
        trainer = self._trainer(name)
        body = next(each for each in trainer.read_manifest() if each["kind"] == JOB.name)
        observed = trainer.observe()
        metadata = body["metadata"] | {"namespace": PLACE, "creationTimestamp": observed.started_at}
        status = make_status(observed, trainer.output, trainer.log)
        spec = body["spec"] | ({"suspend": True} if status["stage"] == "Suspended" else {})
        return body | {"metadata": metadata, "spec": spec, "status": status}

    def _require_job(self, name: str) -> None:
        if not self._trainer(name).exists:
            raise ClientError(f"no FineTuneJob {name} in {self.place}", "client.jobs() lists them.")

    def _trainer(self, name: str) -> TrainerProcess:
        return TrainerProcess(self._folder / STATE / JOB.plural / name, self._folder / name)

    def _start_service(self, draft: Draft) -> Object:
        requirements.require_modules(*requirements.ENGINE)
        if draft.name in self._engines:
            self._engines.pop(draft.name).stop()
        state = self._folder / STATE / "inferenceservices" / draft.name
        state.mkdir(parents=True, exist_ok=True)
        manifest = state / "inferenceservice.yaml"
        write_atomically(manifest, yaml.safe_dump(draft.body, sort_keys=False, allow_unicode=True))
        trainers = {name: self._trainer(name) for name in find_service_jobs(draft.body)}
        jobs = {name: str(trainer.output) for name, trainer in trainers.items()}
        found = {**self._claims, **draft.claims}
        for trainer in trainers.values():
            found |= trainer.read_claims()
        claims = {name: str(path) for name, path in found.items()}
        arguments = command_lines.make_engine_arguments(manifest, claims, jobs)
        arguments += command_lines.make_claim_options(claims)
        self._engines[draft.name] = EngineProcess(arguments, state / "engine.log")
        return self._read_service(draft.name)

    def _read_service(self, name: str) -> Object:
        engine = self._find_engine(name)
        state = self._folder / STATE / "inferenceservices" / name / "inferenceservice.yaml"
        body: Object = yaml.safe_load(state.read_text(encoding="utf-8"))
        code = engine.read_exit_code()
        if code is not None:
            condition = {"status": "False", "reason": "EngineEnded", "message": _explain_end(engine, code)}
        elif engine.is_ready():
            condition = {"status": "True", "reason": "Answers", "message": "All models have answered."}
        else:
            condition = {"status": "False", "reason": "Starting", "message": "The engine loads the model."}
        status = {"url": f"{engine.address}/v1", "conditions": [{"type": "Available", **condition}]}
        metadata = body["metadata"] | {"namespace": PLACE, "creationTimestamp": format_now()}
        return body | {"metadata": metadata, "status": status}

    def _find_engine(self, name: str) -> EngineProcess:
        if name not in self._engines:
            raise ClientError(
                f"this client has started no InferenceService {name}",
                "On this machine an engine ends with the program that started it: call serve().",
            )
        return self._engines[name]


def _explain_end(engine: EngineProcess, code: int) -> str:
    return f"The engine ended with exit code {code}. The end of its log {engine.log}:\n{engine.read_log_end()}"
