"""A tiny model and datasets that the tests make themselves, and two ways to run the trainer."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chat_templates import CHAT_TEMPLATE, GENERATION_TEMPLATE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Of each test process, as in the trainers that tests start: with more, two processes wait for each other's threads.
torch.set_num_threads(1)

SENTENCES = [
    "the trainer reads the very manifest that the cluster takes",
    "a checkpoint is complete or it is absent",
    "every failure has a name and a remedy",
    "what was trained is what is served",
    "an adapter is small and a model is large",
    "the loss goes down and the lights stay on",
]


@pytest.fixture(autouse=True)
def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make 4-bit models that tests load themselves compute in the same way on all CPUs, as in the trainer."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def make_tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        SENTENCES * 4, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = chat_template
    return fast


def make_model(folder: Path, chat_template: str | None = CHAT_TEMPLATE, hidden_size: int = 32) -> Path:
    """Save a Llama of some 40,000 parameters."""
    tokenizer = make_tokenizer(chat_template)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def claim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder of a claim with models and data."""
    root = tmp_path_factory.mktemp("claim", numbered=False)
    make_model(root / "tiny")
    make_model(root / "no-template", chat_template=None)
    make_model(root / "generation", chat_template=GENERATION_TEMPLATE)
    make_model(root / "wide", hidden_size=64)
    shutil.copytree(root / "tiny", root / "truncated")
    os.truncate(root / "truncated/model.safetensors", 100_000)
    write_jsonl(root / "text.jsonl", [{"text": f"{sentence} {n}"} for n in range(4) for sentence in SENTENCES])
    write_jsonl(root / "chat.jsonl", [{"messages": chat(sentence)} for sentence in SENTENCES])
    write_jsonl(root / "pairs.jsonl", [{"prompt": "say: ", "completion": sentence} for sentence in SENTENCES])
    return root


def chat(sentence: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "say something"}, {"role": "assistant", "content": sentence}]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_job(**spec: Any) -> dict[str, Any]:
    """Make a FineTuneJob that trains LoRA on text.jsonl for four steps, changed by `spec`."""
    training = {
        "maxSteps": 4,
        "perDeviceTrainBatchSize": 2,
        "loggingSteps": 1,
        "learningRate": 1e-2,
        "activationCheckpointing": False,
        "bf16": False,
    }
    base: dict[str, Any] = {
        "model": {"claim": {"name": "claim", "path": "tiny"}},
        "dataset": {"claim": {"name": "claim", "path": "text.jsonl"}},
        "resources": {"gpus": 0},
        "training": training | spec.pop("training", {}),
    }
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "tiny"},
        "spec": base | spec,
    }


@dataclass(frozen=True)
class Result:
    """How a run ended. `message` is the termination message, `log` the output that it printed."""

    code: int
    message: dict[str, Any]
    output: Path
    log: str = ""

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.output / "manifest.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without durations and memory."""
        lines = [json.loads(line) for line in (self.output / "logs/metrics.jsonl").read_text().splitlines()]
        return [
            {
                name: value
                for name, value in line.items()
                if not any(word in name for word in ("runtime", "second", "memory"))
            }
            for line in lines
        ]


WORKER = """
import json, sys
from hone_trainer.main import parse_options, run_and_report
from hone_trainer.runtime.signals import StopSignal
for line in sys.stdin:
    code, message = run_and_report(parse_options(json.loads(line)), StopSignal())
    sys.stderr.flush()
    print(json.dumps([code, json.loads(message.to_bytes())]), flush=True)
"""


class Worker:
    """A process that runs one job after another, so that torch is imported once."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        self._count = 0
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            env={**os.environ, "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1", **environ},
            text=True,
        )

    def run(
        self,
        *documents: dict[str, Any],
        claims: dict[str, Path],
        config_maps: dict[str, Path] | None = None,
        output: Path | None = None,
        command: str = "run",
        arguments: tuple[str, ...] = (),
    ) -> Result:
        self._count += 1
        output = output or self.folder / f"out-{self._count}"
        manifest = write_manifest(self.folder / f"job-{self._count}.yaml", *documents)
        argv = [command, str(manifest), "--output", str(output), *arguments]
        argv += ["--port", "0"] if command == "run" else []
        for option, folders in (("--claim", claims), ("--config-map", config_maps or {})):
            argv += [word for name, folder in folders.items() for word in (option, f"{name}={folder}")]
        seen = self._log.stat().st_size
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(argv) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        log = self._log.read_bytes()[seen:].decode()
        assert answer, f"the worker ended: {log}"
        code, word = json.loads(answer)
        return Result(code, word, output, log)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


def hold_at(batch: int, rank: int = 0) -> dict[str, str]:
    """Return the variables of a process that waits before a batch until it is stopped or killed."""
    return {"PYTHONPATH": str(Path(__file__).with_name("held")), "HONE_TEST_HOLD": f"{rank}:{batch}"}


@pytest.fixture(scope="session")
def hold() -> Callable[..., dict[str, str]]:
    return hold_at


def write_manifest(path: Path, *documents: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Worker]]:
    """Start a worker: make_worker(name, environ)."""
    started: list[Worker] = []

    def make(name: str, environ: dict[str, str]) -> Worker:
        started.append(Worker(tmp_path_factory.mktemp(name), environ))
        return started[-1]

    yield make
    for worker in started:
        worker.close()


@pytest.fixture(scope="session")
def worker(make_worker: Callable[..., Worker]) -> Worker:
    return make_worker("worker", {"HF_HUB_OFFLINE": "1"})


@pytest.fixture(scope="session")
def job() -> Callable[..., dict[str, Any]]:
    return make_job


@pytest.fixture(scope="session")
def train(worker: Worker, claim: Path) -> Callable[..., Result]:
    """Run a job in the shared worker, with the claim `claim`: train(job(...), ConfigMaps…, output=…)."""

    def run(*documents: dict[str, Any], **where: Any) -> Result:
        return worker.run(*documents, **({"claims": {"claim": claim}} | where))

    return run


class Process:
    """The real command in a process of its own."""

    def __init__(
        self, folder: Path, document: dict[str, Any], claim: Path, output: Path, *arguments: str, **environ: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = output
        self._word = folder / "termination-log"
        self._log = folder / "log"
        manifest = write_manifest(folder / "job.yaml", document)
        command = [sys.executable, "-m", "hone_trainer", "run", str(manifest), "--output", str(output)]
        command += ["--claim", f"claim={claim}", "--termination-log", str(self._word), *arguments]
        self._process = subprocess.Popen(
            command if "--port" in arguments else [*command, "--port", "0"],
            stderr=self._log.open("w"),
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environ},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_for(self, ready: Callable[[], Any], seconds: float = 300) -> Any:
        """Wait until `ready` returns something true, and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = ready()
            if found:
                return found
            assert self._process.poll() is None, f"the trainer ended: {self._log.read_text()}"
            time.sleep(0.01)
        raise AssertionError(f"waited {seconds} s: {self._log.read_text()}")

    def log(self) -> str:
        """Return the output printed so far."""
        return self._log.read_text()

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def result(self) -> Result:
        code = self._process.wait(timeout=300)
        word = json.loads(self._word.read_text()) if self._word.exists() else {}
        return Result(code, word, self.output, self._log.read_text())


@pytest.fixture
def process(claim: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start the real command: process(job(...), output, *arguments, **environ)."""
    started: list[Process] = []

    def start(document: dict[str, Any], output: Path, *arguments: str, **environ: str) -> Process:
        folder = tmp_path / f"process-{len(started)}"
        started.append(Process(folder, document, claim, output, *arguments, HF_HOME=str(tmp_path / "hf"), **environ))
        return started[-1]

    yield start
    for found in started:
        found.end()


@dataclass(frozen=True)
class Kill:
    """A signal to send `delay` seconds after a phase (see zygote.py) has begun for the `at`-th time.

    Without a delay, the process sends it to itself, exactly at that moment.
    """

    number: signal.Signals
    phase: str
    at: int = 1
    delay: float = 0.0


@dataclass(frozen=True)
class Fork(Result):
    """The ending of a forked run, and what it announced: when, `begin` or `end`, which phase."""

    events: list[tuple[float, str, str]] = field(default_factory=list)

    def durations(self, phase: str) -> list[float]:
        """Return the seconds that each pass of a phase took."""
        times = {kind: [at for at, found, name in self.events if (found, name) == (kind, phase)] for kind in KINDS}
        return [end - begin for begin, end in zip(times["begin"], times["end"], strict=True)]


KINDS = ("begin", "end")
SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Forks:
    """Runs the trainer in children of one process that has done the imports, where real signals reach it."""

    def __init__(self, folder: Path, claim: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        self._claim = claim
        self._count = 0
        reader, writer = os.pipe()
        self._zygote = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py")), str(writer)],
            stdin=subprocess.PIPE,
            env={**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", **SINGLE, **environ},
            pass_fds=[writer],
            text=True,
        )
        os.close(writer)
        self._events = os.fdopen(reader)
        kind, threads = self._events.readline().split()
        assert (kind, threads) == ("ready", "1"), "a process with threads can't be forked safely"

    def run(
        self,
        documents: dict[str, Any] | list[dict[str, Any]],
        output: Path,
        *kills: Kill,
        fill: dict[str, Any] | None = None,
        limit: int | None = None,
        gpu: int | None = None,
        rows: Path | None = None,
        environ: dict[str, str] | None = None,
        command: str = "run",
        arguments: tuple[str, ...] = (),
    ) -> Fork:
        """Run a job to its end, and send the signals of `kills`, in their order.

        `rows` is a file to which the tokens of each batch are appended.
        """
        given = documents if isinstance(documents, list) else [documents]
        manifest = write_manifest(self.folder / f"job-{self._count}.yaml", *given)
        word = self.folder / f"word-{self._count}"
        argv = [command, str(manifest), "--output", str(output), "--claim", f"claim={self._claim}"]
        argv += ["--termination-log", str(word), *arguments, *(["--port", "0"] if command == "run" else [])]
        conditions = {"fill": fill, "limit": limit, "gpu": gpu, "rows": str(rows) if rows else None}
        ended = self.command(argv, *kills, **conditions, environ=environ)
        return replace(ended, output=output, message=json.loads(word.read_text()) if word.exists() else {})

    def command(self, argv: list[str], *kills: Kill, **conditions: Any) -> Fork:
        """Run any command of the trainer, under the conditions that zygote.py knows."""
        self._count += 1
        log = self.folder / f"log-{self._count}"
        at_once = [[kill.phase, kill.at, int(kill.number)] for kill in kills if not kill.delay]
        assert self._zygote.stdin
        self._zygote.stdin.write(json.dumps({"argv": argv, "log": str(log), "signals": at_once, **conditions}) + "\n")
        self._zygote.stdin.flush()
        waiting, events, pid = [kill for kill in kills if kill.delay], [], 0
        while True:
            kind, value, *moment = self._events.readline().split()
            if kind == "exit":
                break
            if kind == "pid":
                pid = int(value)
                continue
            events.append((float(moment[0]), kind, value))
            seen = sum(event[1:] == ("begin", value) for event in events)
            while waiting and kind == "begin" and pid and (waiting[0].phase, waiting[0].at) == (value, seen):
                time.sleep(waiting[0].delay)
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, waiting.pop(0).number)
        return Fork(int(value), {}, self.folder, log.read_text(), events)

    def close(self) -> None:
        assert self._zygote.stdin
        self._zygote.stdin.close()
        self._zygote.wait(timeout=60)
        self._events.close()


@pytest.fixture(scope="session")
def make_forks(tmp_path_factory: pytest.TempPathFactory, claim: Path) -> Iterator[Callable[..., Forks]]:
    """Start a process to fork trainers from: make_forks(environ)."""
    started: list[Forks] = []

    def make(environ: dict[str, str]) -> Forks:
        started.append(Forks(tmp_path_factory.mktemp("forks"), claim, environ))
        return started[-1]

    yield make
    for found in started:
        found.close()


@pytest.fixture(scope="session")
def forks(make_forks: Callable[..., Forks]) -> Forks:
    return make_forks({})


@pytest.fixture(scope="session")
def kill() -> type[Kill]:
    return Kill
