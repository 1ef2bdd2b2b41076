"""Many clients at once: seeds give the same answers, all are answered, and a client that leaves frees its place."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest


def ask(client: Any, prompt: Any, seed: Any, model: str = "tiny-llama", max_tokens: int = 48) -> Any:
    options = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 1.0, "seed": seed}
    return client.completions.create(**options, extra_body={"ignore_eos": True}).choices[0].text


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(client: Any) -> None:
    assert ask(client, "hello", 1) == ask(client, "hello", 1)
    assert ask(client, "hello", 1) != ask(client, "hello", 2)


def test_without_a_seed_answers_differ(client: Any) -> None:
    assert len({ask(client, "hello", None) for _ in range(4)}) == 4


def test_a_seed_gives_the_same_answer_next_to_any_other_request(client: Any) -> None:
    seeds = range(8)
    alone = [ask(client, "hello world", seed) for seed in seeds]
    with ThreadPoolExecutor(16) as pool:
        beside = [pool.submit(ask, client, "we tune " * seed, 100 + seed, max_tokens=90) for seed in range(1, 9)]
        together = list(pool.map(lambda seed: ask(client, "hello world", seed), seeds))
        assert all(len(other.result()) > 0 for other in beside)
    assert together == alone


def test_eight_clients_on_three_models_get_what_one_gets(client: Any) -> None:
    requests = [(f"question {i}", i, model) for i in range(8) for model in ("tiny-llama", "support", "legal")]
    alone = [ask(client, *request, max_tokens=24) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: ask(client, *request, max_tokens=24), requests))
    assert together == alone


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(server: Any, until: Callable[..., None], stream: bool) -> None:
    body = {"model": "tiny-llama", "prompt": "hello", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    if stream:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as answer:
            lines = answer.iter_lines()  # keep it: garbage collection would close the connection
            next(lines)
            assert server.running("tiny-llama") == 1
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.3)
    # The rest of 2000 tokens would take several seconds more.
    until(lambda: server.running("tiny-llama") == 0, seconds=1.5)
