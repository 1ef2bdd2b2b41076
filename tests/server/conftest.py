"""Tiny models that the tests create, and real servers that serve them."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest
import torch
from browser import browse, chromium  # noqa: F401 fixtures of the pages' tests
from hone_api.artifacts.manifest import ArtifactManifest, BaseModelReference
from peft import LoraConfig, get_peft_model
from run_isolation import find_free_port
from sealed_artifacts import seal
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Of each test process, as in the servers that tests start: with more, two processes wait for each other's threads.
torch.set_num_threads(1)

CONTEXT = 2048
SENTENCES = ["the quick brown fox jumps over the lazy dog", "hello world, how are you today?", "we tune large models"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + m['role']) }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Server:
    """A running `python -m hone_server`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def read_log(self) -> str:
        return self.log.read_text()

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=10)

    def post(self, path: str, body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def running(self, model: str) -> float:
        """Return the number of requests in the model's batch, from /metrics."""
        prefix = f'hone:num_requests_running{{model_name="{model}"}} '
        return next(
            float(line.removeprefix(prefix))
            for line in self.get("/metrics").text.splitlines()
            if line.startswith(prefix)
        )


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(folder: Path, *, hidden: int = 64, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Return a Llama with random weights, which are large enough that its answers vary."""
    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path, *, seed: int, **lora: object) -> Path:
    """Write a LoRA adapter whose random weights change the answers."""
    torch.manual_seed(seed)
    options = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **lora}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **options))
    model.save_pretrained(folder)
    return folder


def start(*args: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, "-m", "hone_server", *args], stderr=stderr, env=environment)


@contextlib.contextmanager
def serving(*args: str) -> Iterator[Server]:
    """Run a server until it is ready, and wait for its end. Its log is a file: a full pipe would block it."""
    port = find_free_port()
    with tempfile.NamedTemporaryFile(prefix="hone-server-", suffix=".log") as log:
        process = start(*args, "--host", "127.0.0.1", "--port", str(port), stderr=log.fileno())
        server = Server(f"http://127.0.0.1:{port}", process, Path(log.name))
        try:
            wait_until(lambda: ready(server))
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=100)
            finally:
                process.kill()


def ready(server: Server) -> bool:
    if server.process.poll() is not None:
        pytest.fail(f"the server ended: {server.read_log()}")
    with contextlib.suppress(httpx.TransportError):
        return server.get("/health").status_code == 200
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def seal_tree() -> Callable[..., ArtifactManifest]:
    return partial(seal, job="support")


@pytest.fixture(scope="session")
def model_maker() -> Callable[..., Path]:
    return make_model


@pytest.fixture(scope="session")
def tokenizer_maker() -> Callable[[], PreTrainedTokenizerFast]:
    return make_tokenizer


@pytest.fixture(scope="session")
def adapter_maker() -> Callable[..., Path]:
    return make_adapter


@pytest.fixture(scope="session")
def serve() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """`with serve(*arguments) as server:` is a server of the test's own."""
    return serving


@pytest.fixture(scope="session")
def run_to_end() -> Callable[..., tuple[int, str]]:
    """Run a server that is expected to exit; return its exit code and its output."""

    def run(*args: str) -> tuple[int, str]:
        process = start(*args, "--host", "127.0.0.1", "--port", str(find_free_port()))
        _, output = process.communicate(timeout=240)
        return process.returncode, output.decode()

    return run


@pytest.fixture
def start_server() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a server without waiting for it."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*args: str) -> subprocess.Popen[bytes]:
        started.append(start(*args, "--host", "127.0.0.1", "--port", str(find_free_port())))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    return wait_until


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("claim") / "tiny-llama")


@pytest.fixture(scope="session")
def artifact(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an artifact tree of kind adapter, trained on the base at claim `models`, path `tiny-llama`."""
    tree = tmp_path_factory.mktemp("artifact") / "support"
    make_adapter(tree / "adapter", base_folder, seed=1)
    seal(tree, "adapter", BaseModelReference(claim="models", path="tiny-llama"), job="support")
    return tree


@pytest.fixture(scope="session")
def peft_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a plain PEFT folder: no manifest, and a tokenizer of its own that has no chat template."""
    folder = make_adapter(tmp_path_factory.mktemp("peft") / "legal", base_folder, seed=2)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def server(base_folder: Path, artifact: Path, peft_folder: Path) -> Iterator[Server]:
    """Return the base `tiny-llama` and the adapters `support` (from an artifact) and `legal` (a PEFT folder)."""
    claim = f"models={base_folder.parent}"
    with serving(str(artifact), "--claim", claim, "--adapter", f"legal={peft_folder}") as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()
