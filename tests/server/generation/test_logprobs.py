"""Log probabilities and echo, through OpenAI's client and its types."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hone_server.engine.sampler import TokenLogprobs
from hone_server.generation.logprobs import LogprobStream
from transformers import AutoModelForCausalLM, AutoTokenizer

MESSAGES = [{"role": "user", "content": "hello world"}]


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture(scope="module")
def whole_characters(tokenizer: Any) -> Any:
    """Return a bias against special tokens and parts of characters, which the random model prefers."""
    plain = {token: tokenizer.decode([token], skip_special_tokens=True) for token in range(len(tokenizer))}
    return {str(token): -100 for token, text in plain.items() if not text or "\ufffd" in text}


def chat(client: Any, **options: Any) -> Any:
    request = {"model": "tiny-llama", "messages": MESSAGES, "max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(**request, extra_body={"ignore_eos": True})


def complete(client: Any, **options: Any) -> Any:
    return client.completions.create(
        **{"model": "tiny-llama", "prompt": "hello", "max_tokens": 12, "temperature": 0, **options}
    )


def test_they_are_the_models_own_with_any_sampling(
    client: Any, base_folder: Path, tokenizer: Any, whole_characters: Any
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    prompt = tokenizer("hello")["input_ids"]
    options = {"temperature": 1.3, "seed": 3, "presence_penalty": 1, "top_p": 0.9, "logit_bias": whole_characters}
    choice = complete(client, logprobs=3, **options, extra_body={"ignore_eos": True}).choices[0]
    answer = complete(client, **options, extra_body={"ignore_eos": True}).choices[0].text
    assert choice.text == answer
    ids = [next(i for i in range(len(tokenizer)) if tokenizer.decode([i]) == text) for text in choice.logprobs.tokens]
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = logprobs[torch.arange(len(ids)), torch.tensor(ids)]
    assert torch.allclose(torch.tensor(choice.logprobs.token_logprobs), expected, atol=1e-3)
    for told, row, text in zip(choice.logprobs.top_logprobs, logprobs, choice.logprobs.tokens, strict=True):
        top = torch.topk(row, 3)
        best = {tokenizer.decode([int(i)]): float(value) for i, value in zip(top.indices, top.values, strict=True)}
        assert best.keys() | {text} == {one for one in told if not one.startswith("token_id:")}
        assert len(told) in (3, 4)
        assert all(told[one] == pytest.approx(best[one], abs=1e-3) for one in best if "\ufffd" not in one)


def test_a_chat_has_token_bytes_and_the_likeliest_tokens(client: Any, whole_characters: Any) -> None:
    choice = chat(client, logprobs=True, top_logprobs=2, logit_bias=whole_characters).choices[0]
    content = choice.logprobs.content
    assert len(content) == 12
    assert "".join(entry.token for entry in content) == choice.message.content
    for entry in content:
        assert entry.bytes == list(entry.token.encode())
        first, second = entry.top_logprobs
        assert first.logprob >= second.logprob
        assert first.logprob >= entry.logprob


def test_a_part_of_a_character_has_no_bytes(client: Any, tokenizer: Any, whole_characters: Any) -> None:
    part = next(token for token in whole_characters if "\ufffd" in tokenizer.decode([int(token)]))
    entry = chat(client, logprobs=True, max_tokens=1, logit_bias={part: 100}).choices[0].logprobs.content[0]
    assert (entry.token, entry.bytes) == ("\ufffd", None)


def test_without_top_logprobs_there_are_none_and_without_logprobs_nothing(client: Any) -> None:
    assert [entry.top_logprobs for entry in chat(client, logprobs=True).choices[0].logprobs.content] == [[]] * 12
    assert chat(client).choices[0].logprobs is None
    assert complete(client).choices[0].logprobs is None


@pytest.mark.parametrize("stopped", [False, True])
def test_a_stream_has_the_same_as_the_complete_answer(client: Any, whole_characters: Any, stopped: bool) -> None:
    options = {"logprobs": True, "top_logprobs": 1, "temperature": 1, "seed": 11, "logit_bias": whole_characters}
    if stopped:
        text = chat(client, **options).choices[0].message.content
        options |= {"stop": text[5:8]}
    whole = chat(client, **options).choices[0]
    told = [chunk.choices[0] for chunk in chat(client, stream=True, **options)]
    entries = [entry for choice in told if choice.logprobs for entry in choice.logprobs.content]
    assert [(entry.token, entry.bytes) for entry in entries] == [
        (entry.token, entry.bytes) for entry in whole.logprobs.content
    ]
    assert "".join(choice.delta.content or "" for choice in told) == whole.message.content
    assert whole.finish_reason == ("stop" if stopped else "length")
    assert "".join(entry.token for entry in entries).startswith(whole.message.content)


def test_offsets_are_places_in_the_text(client: Any, whole_characters: Any) -> None:
    choice = complete(client, logprobs=0, logit_bias=whole_characters).choices[0]
    for text, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert choice.text[offset : offset + len(text)] == text
    assert [set(top) for top in choice.logprobs.top_logprobs] == [{text} for text in choice.logprobs.tokens]


def test_tokens_of_a_stop_string_are_not_reported() -> None:
    stream = LogprobStream(lambda tokens: f"<{tokens[0]}>")
    for token, offset in [(1, 0), (2, 3), (3, 6)]:
        stream.push(TokenLogprobs(token, -1.0, ()), offset)
    assert [one.text for one in stream.release(2)] == ["<1>"]
    assert [one.text for one in stream.release(2)] == []
    assert [one.text for one in stream.release(6)] == ["<2>"]
    assert [one.text for one in stream.release(6, everything=True)] == ["<3>"]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_returns_the_prompt_first(client: Any, tokenizer: Any, stream: bool) -> None:
    tokens = tokenizer("we tune")["input_ids"]
    for prompt, text in [("hello", "hello"), (tokens, "we tune")]:
        plain = complete(client, prompt=prompt).choices[0].text
        answer = complete(client, prompt=prompt, echo=True, stream=stream)
        told = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
        assert told == text + plain
