"""Prometheus metrics with the names and meanings of vLLM's, under the prefix `hone:`."""

import itertools
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hone_server.generation.generate import OutputChunk

BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

MAX_LORA, WAITING, RUNNING = "max_lora", "waiting_lora_adapters", "running_lora_adapters"

# For each model: requests that run, requests that wait, and the used part of the key-value cache.
LoadReader = Callable[[], dict[str, tuple[int, int, float]]]


class Metrics:
    """The server's counters. At every scrape `load` is called, and `adapters` for the names of the adapters."""

    def __init__(self, load: LoadReader, adapters: Callable[[], list[str]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_LoadCollector(load, adapters))
        label = ["model_name"]

        def add_counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"hone:{name}", text, [*label, *more], registry=self.registry)

        def add_histogram(name: str, text: str) -> Histogram:
            return Histogram(f"hone:{name}_seconds", text, label, buckets=BUCKETS_SECONDS, registry=self.registry)

        self.prompt_tokens = add_counter("prompt_tokens", "Prompt tokens processed.")
        self.generation_tokens = add_counter("generation_tokens", "Tokens generated.")
        self.finished_answers = add_counter(
            "request_success", "Answers: stop, length, abort, or error.", "finished_reason"
        )
        self.refused_requests = add_counter("requests_refused", "Requests answered with 429, because too many waited.")
        self.first_token_seconds = add_histogram(
            "time_to_first_token", "From a request, once it is received, to its first token."
        )
        self.inter_token_seconds = add_histogram("inter_token_latency", "From one token to the next.")
        self.answer_seconds = add_histogram(
            "e2e_request_latency", "From a request, once it is received, to the end of its answer."
        )

    def count_chunk(self, model: str, chunk: OutputChunk, counted_tokens: int, started: float) -> None:
        """Count the next tokens of an answer.

        counted_tokens: how many of its tokens were counted before. started: when the request had been received.
        """
        self.generation_tokens.labels(model).inc(chunk.token_count - counted_tokens)
        times = chunk.token_times[max(counted_tokens - 1, 0) : chunk.token_count]
        if times and not counted_tokens:
            self.first_token_seconds.labels(model).observe(times[0] - started)
        inter_token = self.inter_token_seconds.labels(model)
        for before, after in itertools.pairwise(times):
            inter_token.observe(after - before)
        if chunk.finish_reason:
            self.finished_answers.labels(model, chunk.finish_reason).inc()
            if times:
                self.answer_seconds.labels(model).observe(times[-1] - started)

    def render_text(self) -> bytes:
        return bytes(generate_latest(self.registry))


class _LoadCollector(Collector):
    def __init__(self, load: LoadReader, adapters: Callable[[], list[str]]) -> None:
        self._load = load
        self._adapters = adapters

    def collect(self) -> Iterable[Metric]:
        texts = {
            "num_requests_running": "Requests in the batch.",
            "num_requests_waiting": "Requests that wait for a place in the batch.",
            "kv_cache_usage_perc": "Used part of the key-value cache; 1 is full.",
        }
        families = [GaugeMetricFamily(f"hone:{name}", text, labels=["model_name"]) for name, text in texts.items()]
        load = self._load()
        for model, values in load.items():
            for family, value in zip(families, values, strict=True):
                family.add_metric([model], value)
        if adapters := [name for name in self._adapters() if name in load]:
            families.append(_make_lora_gauge(adapters, load))
        return families


def _make_lora_gauge(adapters: list[str], load: dict[str, tuple[int, int, float]]) -> GaugeMetricFamily:
    """Return the gauge from which routers read which adapters an engine works on. Its value is the time.

    `max_lora` is the number of adapters, because a batch has room for all of them.
    """
    text = "Adapters with requests in the batch and with requests that wait; the value is the time of the scrape."
    family = GaugeMetricFamily("hone:lora_requests_info", text, labels=[MAX_LORA, WAITING, RUNNING])
    waiting = ",".join(name for name in adapters if load[name][1])
    running = ",".join(name for name in adapters if load[name][0])
    family.add_metric([str(len(adapters)), waiting, running], time.time())
    return family
