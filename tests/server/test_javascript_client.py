"""OpenAI's JavaScript client against the engine: it gets what the Python client gets."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import openai
import pytest

FOLDER = Path(__file__).parent / "javascript"
KEY = "key-of-the-javascript-client"


@pytest.fixture(scope="module")
def installed():
    """A folder of the user's cache with the client that package-lock.json pins."""
    if not (shutil.which("node") and shutil.which("npm")):
        if os.environ.get("CI") == "true":
            pytest.fail("the JavaScript client must be tested under CI: node and npm are lacking")
        pytest.skip("NOT RUN: needs node and npm")
    pinned = (FOLDER / "package.json", FOLDER / "package-lock.json")
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in pinned)).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hone" / "javascript" / digest
    cache.mkdir(parents=True, exist_ok=True)
    for file in (*pinned, FOLDER / "calls.mjs"):
        shutil.copy(file, cache)
    if not (cache / "node_modules" / ".package-lock.json").exists():
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=cache, check=True, timeout=300)
    return cache


@pytest.fixture(scope="module")
def keyed(serve, base_folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(KEY)
    with serve(str(base_folder), "--api-key-file", str(file)) as server:
        yield server


@pytest.fixture(scope="module")
def got(installed, keyed):
    run = subprocess.run(
        ["node", "calls.mjs", f"{keyed.url}/v1", KEY], cwd=installed, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_it_lists_the_models(got):
    assert got["models"] == [got["model"]] == ["tiny-llama"]


def test_it_gets_the_answers_of_the_python_client(got, keyed):
    client = openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=KEY, max_retries=0, timeout=60)
    messages = [{"role": "user", "content": "hello"}]
    settings = {"model": "tiny-llama", "seed": 7, "temperature": 0.8, "max_completion_tokens": 8}
    whole = client.chat.completions.create(messages=messages, n=2, **settings)
    assert got["whole"] == [choice.message.content for choice in whole.choices]
    assert got["streamed"]["text"] == got["helper"] == got["whole"][0]
    assert got["usage"] == whole.usage.model_dump(exclude_none=True)
    assert got["streamed"]["usage"]["prompt_tokens"] == whole.usage.prompt_tokens
    assert got["streamed"]["finish"] == whole.choices[0].finish_reason
    assert set(got["logprobs"]) == {3}
    completion = client.completions.create(model="tiny-llama", prompt="hello", max_tokens=4, temperature=0, echo=True)
    assert got["completion"] == completion.choices[0].text


def test_its_errors_are_those_of_openai(got):
    assert got["errors"] == {
        "unknown model": {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
        "too long": {
            "kind": "BadRequestError",
            "status": 400,
            "code": "context_length_exceeded",
            "param": "max_tokens",
        },
        "response_format": {
            "kind": "BadRequestError",
            "status": 400,
            "code": "unsupported_parameter",
            "param": "response_format",
        },
        "wrong key": {"kind": "AuthenticationError", "status": 401, "code": "invalid_api_key", "param": None},
    }


def test_leaving_a_stream_takes_it_out_of_the_batch(got, keyed, until):
    assert got["left"]
    until(lambda: keyed.running("tiny-llama") == 0)
