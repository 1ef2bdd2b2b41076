"""Metrics: vLLM's names, and what they count."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

ENDLESS = {"ignore_eos": True}


@pytest.fixture
def value(server: Any) -> Any:
    """Return a sample's value for the base model."""

    def read(name: Any, **labels: Any) -> Any:
        labels = {"model_name": "tiny-llama", **labels}
        families = text_string_to_metric_families(server.get("/metrics").text)
        found = [s.value for family in families for s in family.samples if s.name == name and s.labels == labels]
        return found[0] if found else 0.0

    return read


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [{"max_tokens": 9, **ENDLESS}, {"max_tokens": 60, "stop": "x", **ENDLESS}])
def test_an_answer_is_counted_and_timed(server: Any, value: Any, stream: bool, options: dict[Any, Any]) -> None:
    names = ["time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"]
    body = {"model": "tiny-llama", "prompt": "hello", "stream": stream, "temperature": 1, "seed": 1, **options}
    before = {name: value(f"hone:{name}_count") for name in names}
    tokens, prompt = value("hone:generation_tokens_total"), value("hone:prompt_tokens_total")
    reasons = {reason: value("hone:request_success_total", finished_reason=reason) for reason in ("stop", "length")}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200
    generated = value("hone:generation_tokens_total") - tokens
    assert value("hone:prompt_tokens_total") > prompt
    assert sum(value("hone:request_success_total", finished_reason=one) - reasons[one] for one in reasons) == 1
    counts = {name: value(f"hone:{name}_count") - before[name] for name in names}
    assert counts["time_to_first_token_seconds"] == counts["e2e_request_latency_seconds"] == 1
    assert counts["inter_token_latency_seconds"] >= generated - 1 > 0
    assert value("hone:e2e_request_latency_seconds_sum") >= value("hone:time_to_first_token_seconds_sum")


def test_a_client_that_leaves_is_an_abort(server: Any, value: Any, until: Callable[..., None]) -> None:
    aborted = value("hone:request_success_total", finished_reason="abort")
    body = {"model": "tiny-llama", "prompt": "hello", "max_tokens": 2000, "stream": True, **ENDLESS}
    tokens, firsts = value("hone:generation_tokens_total"), value("hone:time_to_first_token_seconds_count")
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        until(lambda: value("hone:generation_tokens_total") > tokens + 5)
        assert value("hone:time_to_first_token_seconds_count") == firsts + 1
        assert value("hone:num_requests_running") == 1
        assert 0 < value("hone:kv_cache_usage_perc") < 1
    until(lambda: value("hone:request_success_total", finished_reason="abort") == aborted + 1)
    until(lambda: value("hone:num_requests_running") == 0)
    assert value("hone:num_requests_waiting") == 0
    assert value("hone:kv_cache_usage_perc") == 0, "what is kept for the next prompt that begins so counts as free"


def test_a_metric_lists_the_adapters_in_use_for_routers(server: Any, until: Callable[..., None]) -> None:
    def adapters() -> Any:
        [family] = [
            family
            for family in text_string_to_metric_families(server.get("/metrics").text)
            if family.name == "hone:lora_requests_info"
        ]
        [sample] = family.samples
        assert sample.value > 1.6e9
        return sample.labels

    idle = {"max_lora": "2", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    until(lambda: adapters() == idle)
    body = {"model": "legal", "prompt": "hello", "max_tokens": 2000, "stream": True, **ENDLESS}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert adapters() == {**idle, "running_lora_adapters": "legal"}
    until(lambda: adapters() == idle)
