"""Adapters loaded and unloaded at run time, and who may do so."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hone_api.artifacts.manifest import read_manifest

TOKEN = "t0ken-of-the-test"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("token") / "token"


@pytest.fixture(scope="module")
def hot(serve: Callable[..., AbstractContextManager[Any]], base_folder: Path, token_file: Any) -> Iterator[Any]:
    """Return a server with the base only; the token file is created after the start."""
    with serve(str(base_folder), "--admin-token-file", str(token_file), "--max-model-len", "1024") as server:
        assert httpx.post(server.url + LOAD, json={}, headers={"X-Hone-Admin": ""}).status_code == 404
        token_file.write_text(TOKEN + "\n")
        yield server


def admin(server: Any, path: Any, token: Any = TOKEN, **body: Any) -> Any:
    return httpx.post(server.url + path, json=body, headers={"X-Hone-Admin": token}, timeout=60)


def load(server: Any, name: Any, folder: Any, **more: Any) -> Any:
    return admin(server, LOAD, lora_name=name, lora_path=str(folder), **more)


def cards(server: Any) -> Any:
    return {card["id"]: card for card in server.get("/v1/models").json()["data"]}


def say(server: Any, model: Any, prompt: str = "hello", max_tokens: int = 16) -> Any:
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    answer = server.post("/v1/completions", body)
    return answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.status_code


@pytest.fixture
def name(hot: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return a name for this test; its adapter is removed afterwards."""
    yield request.node.name
    admin(hot, UNLOAD, lora_name=request.node.name)


def test_an_adapter_is_loaded_replaced_and_unloaded(
    hot: Any, server: Any, artifact: Path, peft_folder: Path, name: Any
) -> None:
    base = say(hot, "tiny-llama")
    done = load(hot, name, artifact)
    assert (done.status_code, done.text) == (200, f"Success: LoRA adapter {name!r} added successfully.")
    card = cards(hot)[name]
    assert (card["root"], card["parent"], card["kind"]) == (str(artifact), "tiny-llama", "adapter")
    assert card["digest"] == read_manifest(artifact).digest
    assert say(hot, name) == say(server, "support")
    again = load(hot, name, peft_folder)
    assert again.status_code == 400
    assert "load_inplace" in again.json()["error"]["message"]
    assert load(hot, name, peft_folder, load_inplace=True).status_code == 200
    assert (cards(hot)[name]["root"], cards(hot)[name]["digest"]) == (str(peft_folder), None)
    assert say(hot, name) == say(server, "legal")
    assert say(hot, "tiny-llama") == base == say(server, "tiny-llama")
    gone = admin(hot, UNLOAD, lora_name=name)
    assert (gone.status_code, gone.text) == (200, f"Success: LoRA adapter {name!r} removed successfully.")
    assert list(cards(hot)) == ["tiny-llama"]
    assert say(hot, name) == 404
    assert admin(hot, UNLOAD, lora_name=name).status_code == 404


def test_a_link_into_an_artifact_is_listed_with_its_path_and_the_digest(
    hot: Any, artifact: Path, tmp_path: Path, name: Any
) -> None:
    link = tmp_path / "support-0123456789ab"
    link.symlink_to(artifact / "adapter")
    load(hot, name, link)
    assert cards(hot)[name]["root"] == str(link)
    assert cards(hot)[name]["digest"] == read_manifest(artifact).digest


def test_adapters_that_must_be_merged_are_loaded_and_unloaded_as_well(
    hot: Any, base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path, name: Any
) -> None:
    folder = adapter_maker(tmp_path / "dora", base_folder, seed=5, use_dora=True)
    base = say(hot, "tiny-llama")
    assert load(hot, name, folder).status_code == 200
    assert say(hot, name) != base
    admin(hot, UNLOAD, lora_name=name)
    assert say(hot, name) == 404
    assert say(hot, "tiny-llama") == base


def test_a_running_answer_ends_on_the_weights_that_it_began_with(
    hot: Any, artifact: Path, peft_folder: Path, name: Any
) -> None:
    load(hot, name, artifact)
    whole = say(hot, name, max_tokens=400)
    body = {"model": name, "prompt": "hello", "max_tokens": 400, "temperature": 0, "ignore_eos": True, "stream": True}
    texts = []
    with httpx.stream("POST", f"{hot.url}/v1/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            texts.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
            if len(texts) == 3:
                assert load(hot, name, peft_folder, load_inplace=True).status_code == 200
                replaced = say(hot, name, max_tokens=16)
                assert admin(hot, UNLOAD, lora_name=name).status_code == 200
    assert "".join(texts) == whole
    assert not whole.startswith(replaced)


def test_others_are_answered_while_adapters_are_loaded_and_unloaded(hot: Any, artifact: Path, name: Any) -> None:
    alone, stop = say(hot, "tiny-llama", max_tokens=64), threading.Event()

    def churn() -> None:
        while not stop.is_set():
            assert load(hot, name, artifact, load_inplace=True).status_code == 200

    with ThreadPoolExecutor(5) as pool:
        churning = pool.submit(churn)
        answers = list(pool.map(lambda _: say(hot, "tiny-llama", max_tokens=64), range(12)))
        stop.set()
        churning.result()
    assert set(answers) == {alone}


def cut_end(file: Any) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize(
    ("spoil", "status", "reason"),
    [
        (shutil.rmtree, 404, "ArtifactMissing"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), 400, "ArtifactCorrupt"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"no weights"), 400, "ArtifactCorrupt"),
        (lambda folder: os.truncate(folder / "adapter_model.safetensors", 1000), 400, "ArtifactCorrupt"),
        (lambda folder: cut_end(folder / "adapter_model.safetensors"), 400, "ArtifactCorrupt"),
    ],
    ids=["missing", "config", "weights", "cut", "cut end"],
)
def test_an_adapter_that_cannot_be_loaded_is_named_and_changes_nothing(
    hot: Any, peft_folder: Path, tmp_path: Path, spoil: Any, status: int, reason: str
) -> None:
    folder = shutil.copytree(peft_folder, tmp_path / "broken")
    spoil(folder)
    answer = load(hot, "broken", folder)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, reason)
    assert str(folder) in error["message"]
    assert "broken" not in cards(hot)


def test_an_adapter_of_another_model_is_a_mismatch(
    hot: Any, model_maker: Callable[..., Path], adapter_maker: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter_maker(tmp_path / "adapter", model_maker(tmp_path / "other", hidden=32), seed=3)
    answer = load(hot, "foreign", folder)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "AdapterMismatch")


def test_the_base_is_neither_replaced_nor_removed(hot: Any, peft_folder: Path) -> None:
    taken = load(hot, "tiny-llama", peft_folder, load_inplace=True)
    assert (taken.status_code, taken.json()["error"]["param"]) == (400, "lora_name")
    assert admin(hot, UNLOAD, lora_name="tiny-llama").status_code == 404


@pytest.mark.parametrize("body", [{}, {"lora_name": "a"}, {"lora_name": "", "lora_path": "/x"}])
def test_incomplete_requests_are_refused(hot: Any, body: dict[str, Any]) -> None:
    assert admin(hot, LOAD, **body).status_code == 400


@pytest.mark.parametrize("token", ["", "another", TOKEN + "x", TOKEN[:-1]])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_without_the_token_there_are_no_such_routes(hot: Any, token: Any, method: str) -> None:
    def ask(path: Any) -> Any:
        return httpx.request(method, hot.url + path, json={"lora_name": "a"}, headers={"X-Hone-Admin": token})

    unknown = ask("/v1/no_such_route")
    for path in (LOAD, UNLOAD):
        answer = ask(path)
        assert answer.status_code == unknown.status_code == 404
        assert answer.json() == json.loads(unknown.text.replace("/v1/no_such_route", path))


def test_clients_do_not_see_the_admin_routes(hot: Any, server: Any) -> None:
    assert "lora_adapter" not in hot.get("/openapi.json").text
    assert admin(server, LOAD, lora_name="a", lora_path="b").status_code == 404


@pytest.mark.parametrize("path", ["/tmp/a\0b", "\ud83d", "/tmp/" + "x" * 300, "/tmp/" + "x/" * 3000])
def test_a_path_that_can_not_be_is_refused_by_its_field(hot: Any, path: str) -> None:
    body = json.dumps({"lora_name": "x", "lora_path": path})
    headers = {"X-Hone-Admin": TOKEN, "Content-Type": "application/json"}
    with httpx.Client(base_url=hot.url) as client:
        answer = client.post(LOAD, content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path")
        assert client.post(LOAD, content="[", headers=headers).status_code == 400
        assert client.post(LOAD, content=b"x" * (5 << 20), headers=headers).status_code == 413
