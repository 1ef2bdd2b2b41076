"""Shared by the tests of client packages: a server with a key, whose chat template writes tool calls."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from run_isolation import build_lock
from transformers import AutoTokenizer

KEY = "key-of-the-clients"
MODEL = "tiny-llama"
TEMPLATE = (
    '{% if tools %}{{ tools | tojson }}<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>{% endif %}'
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
JAVASCRIPT = Path(__file__).parent / "javascript"


@dataclass(frozen=True)
class Endpoint:
    """A server as its clients know it, and the answers it must give."""

    url: str
    key: str
    model: str
    tokenizer: Any
    running: Callable[[str], float]

    def expected(self, messages: list[dict[str, Any]], max_tokens: int, **template: Any) -> str:
        """Return the greedy answer to what the chat template makes of these messages, from another route."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template)
        body = {"model": self.model, "prompt": text, "max_tokens": max_tokens, "temperature": 0}
        answer = httpx.post(f"{self.url}/completions", json=body, headers=self.headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def count(self, messages: list[dict[str, Any]]) -> int:
        """Return the number of tokens of this chat's prompt."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@pytest.fixture(scope="session")
def endpoint(
    serve: Callable[..., AbstractContextManager[Any]],
    base_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("clients") / MODEL
    shutil.copytree(base_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    file = folder.parent / "key"
    file.write_text(KEY)
    with serve(str(folder), "--api-key-file", str(file)) as server:
        yield Endpoint(f"{server.url}/v1", KEY, MODEL, tokenizer, server.running)


@pytest.fixture(scope="session")
def javascript() -> Path:
    """Return a folder in the user's cache with the packages of package-lock.json, and the scripts of the tests."""
    if not (shutil.which("node") and shutil.which("npm")):
        if os.environ.get("CI") == "true":
            pytest.fail("the JavaScript clients must be tested under CI: node and npm are lacking")
        pytest.skip("NOT RUN: needs node and npm")
    pinned = (JAVASCRIPT / "package.json", JAVASCRIPT / "package-lock.json")
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in pinned)).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hone" / "javascript" / digest
    with build_lock(cache):
        cache.mkdir(parents=True, exist_ok=True)
        for file in (*pinned, *JAVASCRIPT.glob("*.mjs")):
            shutil.copy(file, cache)
        if not (cache / "node_modules" / ".package-lock.json").exists():
            install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(install, cwd=cache, check=True, timeout=300)
    return cache


ARGUMENTS = {"city": "Paris", "unit": None}
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "hello world"}]


def make_history(*, content: str | None, arguments: Any) -> list[dict[str, Any]]:
    """Return a chat in which the assistant has called a tool and got its result."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        {"role": "user", "content": "how are you today?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "the quick brown fox"},
    ]


@pytest.fixture(scope="session")
def history() -> list[dict[str, Any]]:
    """Return a history with a tool call, as OpenAI's clients send it."""
    return make_history(content=None, arguments=json.dumps(ARGUMENTS))


@pytest.fixture(scope="session")
def answers(endpoint: Endpoint) -> dict[str, str]:
    """Return the first 12 tokens of the right answers: to the question, and to the history."""
    history = make_history(content="", arguments=ARGUMENTS)
    return {"question": endpoint.expected(QUESTION, 12), "history": endpoint.expected(history, 12)}
