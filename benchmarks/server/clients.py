"""Clients that stream answers, and measure the server: tokens a second, and the time to the first one."""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from types import MappingProxyType
from typing import Any

import httpx

NEW_TOKENS = 64
NOTHING: Mapping[str, Any] = MappingProxyType({})
SUBJECTS = ["rivers", "the moon", "trains", "bread", "winter", "numbers", "violins", "gardens"]
# Of 20 to 50 tokens, with the chat template around them 30 to 80.
PROMPTS = [
    f"Tell me about {subject}, and why anyone should care." + " Take your time, and think of a child." * (index % 4)
    for index, subject in enumerate(SUBJECTS)
]


@dataclass(frozen=True)
class Measured:
    """`rate` in tokens a second over all clients; `first`, `slow`: median and 99th percentile to the first text, ms."""

    rate: float
    first: float
    slow: float


def measure_clients(
    url: str, models: list[str], clients: int, requests: int, more: Mapping[str, Any] = NOTHING
) -> Measured:
    """Run this many clients that ask one request after the other, the models in turn, until all are answered.

    more: further parameters of each request.
    """
    return asyncio.run(_run_clients(url, models, clients, requests, more))


async def _run_clients(url: str, models: list[str], clients: int, requests: int, more: Mapping[str, Any]) -> Measured:
    names = cycle(models)
    todo = [(next(names), PROMPTS[number % len(PROMPTS)]) for number in range(requests)]
    firsts: list[float] = []
    tokens = 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        while todo:
            model, prompt = todo.pop()
            first, count = await _send_request(http, model, prompt, more)
            firsts.append(first)
            tokens += count

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        started = time.monotonic()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        took = time.monotonic() - started
    return Measured(
        tokens / took, statistics.median(firsts), statistics.quantiles(firsts, n=100, method="inclusive")[-1]
    )


async def _send_request(http: httpx.AsyncClient, model: str, prompt: str, more: Mapping[str, Any]) -> tuple[float, int]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": NEW_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    started, first, tokens = time.monotonic(), 0.0, 0
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != httpx.codes.OK:
            sys.exit(f"{model}: {answer.status_code} {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[len("data: ") :])
            if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                first = 1000 * (time.monotonic() - started)
            tokens = (event.get("usage") or {}).get("completion_tokens") or tokens
    if not (first and tokens):
        sys.exit(f"{model}: no text, or no usage, in the answer to {prompt!r}")
    return first, tokens
