"""A faulty request ends only itself: the engine continues, and its other answers stay the same."""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_server.engine.continuous_batching import Engine, EngineError, ModelHandle
from hone_server.engine.sampler import SamplingParams
from hone_server.engine.step_errors import MAX_CONSECUTIVE_FAILURES
from hone_server.hardware import KVCacheConfig
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

GREEDY = SamplingParams(temperature=0, top_p=1.0, top_k=0, seed=0)
SETTINGS = {"model": "base", "max_tokens": 4, "temperature": 0, "ignore_eos": True}


class Broken:
    """A guide that fails in the middle of an answer."""

    error = None

    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def fill_bitmask(self, mask: Any, before: Any, generated: Any) -> None:
        mask[:] = 0xFFFFFFFF
        self.steps -= 1
        if self.steps < 0:
            raise IndexError("broken on purpose")


@pytest.fixture
def lane(base_folder: Path) -> Iterator[Any]:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    engine = Engine(model, KVCacheConfig(max_model_len=128, page_count=32))
    engine.start()
    yield ModelHandle(engine, frozenset())
    engine.stop()


async def answer(lane: Any, prompt: Any, guide: Any = None) -> Any:
    chunks = [one async for one in lane.generate(prompt, GREEDY, 20, stream=True, guide=guide)]
    return [token for chunk in chunks for token in chunk.token_ids]


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_step_that_fails_ends_its_requests_and_no_other(lane: Any, steps: int) -> None:
    prompts = [list(range(10, 80)), [5, 6, 7]]

    async def run() -> Any:
        before = [await answer(lane, prompt) for prompt in prompts]
        for _ in range(3):
            with pytest.raises(EngineError, match="broken on purpose"):
                await answer(lane, prompts[0], Broken(steps))
        after = await asyncio.gather(*(answer(lane, prompt) for prompt in prompts))
        return before, after

    before, after = asyncio.run(run())
    assert after == before
    assert lane.engine.is_running
    assert lane.count_requests() == (0, 0)
    cache = lane.engine._manager.batch_processor.cache
    assert all(not allocator.block_table for allocator in cache.cache_allocators.values())


def test_an_engine_stops_when_every_step_fails(lane: Any, until: Callable[..., None]) -> None:
    async def run() -> None:
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            with pytest.raises(EngineError):
                await answer(lane, [5, 6, 7], Broken(0))

    asyncio.run(run())
    until(lambda: not lane.engine.is_running)


@pytest.mark.parametrize("prompt", [[327], [5, 10**12], [], [-1]])
def test_the_engine_itself_refuses_tokens_without_an_embedding(lane: Any, prompt: list[Any] | list[int]) -> None:
    with pytest.raises(EngineError):
        asyncio.run(answer(lane, prompt))
    assert len(asyncio.run(answer(lane, [5, 6, 7]))) == 20


@pytest.fixture(scope="module")
def larger(
    base_folder: Path,
    adapter_maker: Callable[..., Path],
    tokenizer_maker: Callable[[], PreTrainedTokenizerFast],
    serve: Callable[..., AbstractContextManager[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Return a base and adapters with tokens beyond their embeddings: one in a template, one as end token."""
    root = tmp_path_factory.mktemp("larger")
    shutil.copytree(base_folder, root / "base")
    tokenizer = tokenizer_maker()
    tokenizer.add_tokens([f"<extra{number}>" for number in range(50)])
    tokenizer.save_pretrained(root / "base")
    settings = json.loads((root / "base/generation_config.json").read_text())
    (root / "base/generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [2, 370, 10**9, -1]}))
    for kind, options in (("plain", {}), ("dora", {"use_dora": True})):
        adapter_maker(root / kind, base_folder, seed=3, **options)
        tokenizer.eos_token = "<extra9>"
        tokenizer.chat_template = "<extra7>{{ messages[0]['content'] }}"
        tokenizer.save_pretrained(root / kind)
    named = [f"--adapter={kind}={root / kind}" for kind in ("plain", "dora")]
    with serve(str(root / "base"), "--name", "base", *named) as server:
        yield server


ROUTES = {
    "text": ("completions", {"prompt": "hi <extra5>"}),
    "texts": ("completions", {"prompt": ["hi", "<extra49> hi"]}),
    "echo": ("completions", {"prompt": "<extra5>", "echo": True, "logprobs": 1, "max_tokens": 0}),
    "ids": ("completions", {"prompt": [5, 360]}),
    "far": ("completions", {"prompt": [10**15]}),
    "chat": ("chat/completions", {"messages": [{"role": "user", "content": "hi <extra5>"}]}),
    "system": ("chat/completions", {"messages": [{"role": "system", "content": "<extra5>"}]}),
    "parts": ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "<extra5>"}]}]}),
    "stream": ("chat/completions", {"messages": [{"role": "user", "content": "hi <extra5>"}], "stream": True}),
    "several": ("chat/completions", {"messages": [{"role": "user", "content": "<extra5>"}], "n": 3}),
    "json": (
        "chat/completions",
        {
            "messages": [{"role": "user", "content": "<extra5>"}],
            "response_format": {"type": "json_object"},
            "ignore_eos": False,
        },
    ),
}


@pytest.mark.parametrize("model", ["base", "plain", "dora"])
@pytest.mark.parametrize("route", ROUTES)
def test_tokens_that_the_model_has_no_embedding_for_are_refused_on_every_route(
    larger: Any, route: str, model: str
) -> None:
    path, fields = ROUTES[route]
    response = larger.post(f"/v1/{path}", SETTINGS | fields | {"model": model})
    assert (response.status_code, response.json()["error"]["code"]) == (400, None), response.text
    assert "is not in the vocabulary of 327 tokens" in response.json()["error"]["message"]
    assert larger.get("/health").status_code == 200
    other = larger.post("/v1/completions", SETTINGS | {"prompt": "hello", "model": model})
    assert other.json()["usage"]["completion_tokens"] == 4


def test_a_template_with_such_a_token_is_refused_with_its_name_and_warned_about(larger: Any) -> None:
    chat = SETTINGS | {"model": "plain", "messages": [{"role": "user", "content": "hello"}]}
    response = larger.post("/v1/chat/completions", chat)
    assert response.status_code == 400
    assert "(<extra7>) is not in the vocabulary of 327 tokens" in response.json()["error"]["message"]
    assert "plain: the tokenizer has 377 tokens, and the model 327" in larger.read_log()
    assert "token -1 is to end answers, and is not in the vocabulary" in larger.read_log()


@pytest.mark.parametrize("model", ["base", "dora"])
def test_guided_answers_end_with_a_token_of_the_vocabulary(larger: Any, model: str) -> None:
    body = {"model": model, "prompt": "hello", "max_tokens": 40, "temperature": 1, "seed": 1, "n": 4}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [1, True]}}}
    response = larger.post("/v1/completions", body | {"response_format": schema})
    assert response.status_code == 200, response.text
    assert {choice["text"].strip() for choice in response.json()["choices"]} <= {"1", "true"}
    assert {choice["finish_reason"] for choice in response.json()["choices"]} == {"stop"}
    assert larger.get("/health").status_code == 200
