"""The settings of a model's generation_config.json: used, or named in a warning."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hone_server.artifacts.sources import ModelEntry
from hone_server.engine.sampler import SamplingParams
from hone_server.generation.generate import make_chat_tasks, make_completion_tasks
from hone_server.generation.served_model import (
    find_unused_settings,
    make_served_model,
    read_default_max_tokens,
    warn_unused_settings,
)
from hone_server.protocol.requests import ChatRequest, CompletionRequest
from transformers import AutoTokenizer, GenerationConfig

CONTEXT = 64


@pytest.fixture
def model(base_folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    lane = SimpleNamespace(max_model_len=CONTEXT, vocab_size=len(tokenizer), eos_token_ids=frozenset())

    def make(length: Any) -> Any:
        defaults = SamplingParams(1.0, 1.0, 0, 0)
        return make_served_model(ModelEntry("m", "model", "m"), tokenizer, lane, defaults, default_max_tokens=length)

    return make


@pytest.mark.parametrize(
    ("setting", "value", "off"),
    [
        ("min_p", 0.1, 0.0),
        ("typical_p", 0.9, 1.0),
        ("epsilon_cutoff", 0.01, 0.0),
        ("eta_cutoff", 0.01, 0.0),
        ("top_h", 0.5, None),
        ("no_repeat_ngram_size", 3, 0),
        ("encoder_repetition_penalty", 1.2, 1.0),
        ("num_beams", 4, 1),
        ("penalty_alpha", 0.6, 0),
        ("guidance_scale", 1.5, 1),
        ("bad_words_ids", [[3]], []),
        ("suppress_tokens", [3], []),
        ("sequence_bias", [[[3], 1.0]], None),
        ("stop_strings", ["x"], []),
        ("min_new_tokens", 1, 0),
        ("max_length", 4096, None),
        ("forced_eos_token_id", 2, None),
        ("do_sample", False, True),
        ("a_setting_of_later_versions", "x", None),
    ],
)
def test_a_setting_that_is_not_supported_is_named(
    setting: str, value: Any, off: Any, caplog: pytest.LogCaptureFixture
) -> None:
    used = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1, "max_new_tokens": 7}
    config = GenerationConfig(**used, eos_token_id=2, use_cache=True)
    setattr(config, setting, value)
    assert find_unused_settings(config) == {setting: value}
    with caplog.at_level(logging.WARNING):
        warn_unused_settings("faq", config)
        setattr(config, setting, off)
        warn_unused_settings("faq", config)
    [line] = [record.getMessage() for record in caplog.records if record.name == "hone_server"]
    assert line.startswith("faq: ")
    assert f"{setting} {value!r}" in line


@pytest.mark.parametrize(
    ("length", "chat", "completion"), [(None, "room", 16), (7, 7, 7), (40, 40, 40), (9999, "room", "room")]
)
def test_an_answer_without_a_length_has_the_models_own(
    model: Any, length: int | None, chat: int | str, completion: int | str
) -> None:
    made = model(read_default_max_tokens(GenerationConfig(max_new_tokens=length)))
    asked = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    [job] = make_chat_tasks(made, ChatRequest(**asked))
    assert job.max_tokens == (CONTEXT - len(job.prompt) if chat == "room" else chat)
    [job] = make_completion_tasks(made, CompletionRequest(model="m", prompt="hello"))
    assert job.max_tokens == (CONTEXT - len(job.prompt) if completion == "room" else completion)
    assert make_chat_tasks(made, ChatRequest(**asked, max_tokens=3))[0].max_tokens == 3
    assert make_completion_tasks(made, CompletionRequest(model="m", prompt="hello", max_tokens=3))[0].max_tokens == 3


@pytest.mark.parametrize("seed", [None, -1])
def test_the_seed_minus_one_is_another_one_each_time(model: Any, seed: int | None) -> None:
    body: dict[str, Any] = {"model": "m", "prompt": "hello", "max_tokens": 3, "seed": seed}
    seeds = {make_completion_tasks(model(None), CompletionRequest(**body))[0].params.seed for _ in range(8)}
    assert len(seeds) == 8


def test_every_other_seed_is_kept(model: Any) -> None:
    for seed in (0, 1, -2, 2**63 - 1):
        body: dict[str, Any] = {"model": "m", "prompt": "hello", "max_tokens": 3, "seed": seed}
        assert make_completion_tasks(model(None), CompletionRequest(**body))[0].params.seed == seed % 2**64
