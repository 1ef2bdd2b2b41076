"""Log probabilities of the prompt (`echo` with `logprobs`), with which evaluation harnesses score given answers."""

from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from hone_server.engine.sampler import TokenLogprobs
from hone_server.generation.logprobs import decode_prompt_logprobs, format_completion_logprobs
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture(scope="module")
def expected(base_folder: Path, peft_folder: Path) -> Any:
    """Return a function that computes the log probabilities of all tokens after each token, without the engine."""
    models = {"tiny-llama": AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)}
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    models["legal"] = PeftModel.from_pretrained(base, peft_folder)

    def compute(tokens: Any, model: str = "tiny-llama") -> Any:
        with torch.no_grad():
            return models[model](torch.tensor([tokens])).logits[0].log_softmax(-1)

    return compute


def score(client: Any, prompt: Any, **options: Any) -> Any:
    request = {"model": "tiny-llama", "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    return client.completions.create(**{**request, **options})


def check(told: Any, tokens: Any, expected: Any, top: int = 1) -> None:
    """Compare the reported tokens of a prompt, and the token after it, with the model's own."""
    assert told.token_logprobs[0] is told.top_logprobs[0] is None
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
    own = expected[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:], dtype=torch.long)]
    assert torch.allclose(torch.tensor(told.token_logprobs[1 : len(tokens)]), own, atol=1e-3)
    best = torch.topk(expected, top).values
    for place, likeliest in enumerate(told.top_logprobs[1 : len(tokens)]):
        values = sorted(likeliest.values(), reverse=True)[:top]
        assert values == pytest.approx(best[place].tolist(), abs=1e-3)


def assert_same(told: Any, other: Any) -> None:
    """Compare log probabilities except for their last bits, which depend on the other requests in the batch."""
    assert (told.tokens, told.text_offset) == (other.tokens, other.text_offset)
    assert told.token_logprobs[0] is other.token_logprobs[0] is None
    assert told.token_logprobs[1:] == pytest.approx(other.token_logprobs[1:], abs=1e-3)


@pytest.mark.parametrize("model", ["tiny-llama", "legal"])
@pytest.mark.parametrize("length", [1, 2, 40, 700])
def test_they_are_the_models_own(client: Any, expected: Any, model: str, length: int) -> None:
    """A prompt of 700 tokens takes two steps of the engine. The second time, its pages are in the cache."""
    tokens = torch.randint(6, 320, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for _ in range(2):
        [choice] = score(client, tokens, model=model, logprobs=5).choices
        assert len(choice.logprobs.tokens) == length + 1
        check(choice.logprobs, tokens, expected(tokens, model), top=5)


def test_texts_and_tokens_in_one_request_have_their_own(client: Any, tokenizer: Any, expected: Any) -> None:
    texts = ["hello world", "we tune large models, hello", "the quick brown fox"]
    tokens = [tokenizer(text)["input_ids"] for text in texts]
    of_texts, of_tokens = score(client, texts), score(client, tokens)
    for choice, own, text, same in zip(of_texts.choices, tokens, texts, of_tokens.choices, strict=True):
        assert_same(choice.logprobs, same.logprobs)
        assert choice.text.startswith(text)
        assert choice.logprobs.tokens[: len(own)] == [tokenizer.decode([token]) for token in own]
        check(choice.logprobs, own, expected(own))
        for token, offset in zip(choice.logprobs.tokens[: len(own)], choice.logprobs.text_offset, strict=False):
            assert choice.text[offset:].startswith(token)


def test_they_come_with_an_answer_that_is_like_any_other(client: Any) -> None:
    options = {"max_tokens": 8, "logprobs": 2, "extra_body": {"ignore_eos": True}}
    prompt = "hello world"
    plain = score(client, prompt, echo=False, **options).choices[0]
    both = score(client, prompt, **options).choices[0]
    assert both.text == prompt + plain.text
    new = len(plain.logprobs.tokens)
    assert both.logprobs.tokens[-new:] == plain.logprobs.tokens
    assert both.logprobs.token_logprobs[-new:] == pytest.approx(plain.logprobs.token_logprobs, abs=1e-3)
    assert [set(top) for top in both.logprobs.top_logprobs[-new:]] == [set(top) for top in plain.logprobs.top_logprobs]
    assert both.logprobs.text_offset[-new:] == [len(prompt) + offset for offset in plain.logprobs.text_offset]
    for choice in score(client, prompt, n=2, **options).choices:
        assert_same(choice.logprobs, both.logprobs)


def test_a_stream_sends_them_first(client: Any) -> None:
    options = {"max_tokens": 8, "extra_body": {"ignore_eos": True}}
    [whole] = score(client, "hello world", **options).choices
    told = [chunk.choices[0] for chunk in score(client, "hello world", stream=True, **options)]
    assert told[0].logprobs.token_logprobs[0] is None
    joined = whole.logprobs.model_copy()
    for name in ("tokens", "token_logprobs", "text_offset"):
        setattr(joined, name, [item for one in told if one.logprobs for item in getattr(one.logprobs, name)])
    assert_same(joined, whole.logprobs)
    assert "".join(one.text for one in told) == whole.text


def test_no_event_of_a_stream_has_many_of_them(client: Any) -> None:
    tokens = [7, 9] * 100
    chunks = [chunk.choices[0] for chunk in score(client, tokens, stream=True)]
    counts = [len(chunk.logprobs.tokens) for chunk in chunks if chunk.logprobs]
    assert (sum(counts), max(counts)) == (len(tokens) + 1, 32)


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("tokens", [[0, 1, 2], [2], [3, 4]])
def test_a_prompt_of_special_tokens_has_no_text_and_has_them(
    client: Any, expected: Any, tokens: list[int], max_tokens: int
) -> None:
    [choice] = score(client, tokens, max_tokens=max_tokens, logprobs=0).choices
    assert len(choice.logprobs.tokens) >= len(tokens)
    assert set(choice.logprobs.text_offset[: len(tokens)]) == {0}
    told = choice.logprobs.token_logprobs[: len(tokens)]
    assert told[0] is None
    found = [row[token].item() for row, token in zip(expected(tokens), tokens[1:], strict=False)]
    assert told[1:] == pytest.approx(found, abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_without_new_tokens_there_are_only_those_of_the_prompt(
    client: Any, tokenizer: Any, expected: Any, stream: bool
) -> None:
    tokens = tokenizer("hello world")["input_ids"]
    answer = score(client, tokens, max_tokens=0, stream=stream, logprobs=0)
    [choice] = list(answer)[-1].choices if stream else answer.choices
    assert (choice.text, choice.finish_reason) == ("hello world", "length")
    assert len(choice.logprobs.tokens) == len(tokens)
    check(choice.logprobs, tokens, expected(tokens), top=0)
    if not stream:
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(tokens), 0)


def test_a_prompt_may_fill_the_context(client: Any, expected: Any) -> None:
    tokens = [7, 9] * 1024
    [choice] = score(client, tokens, max_tokens=0).choices
    check(choice.logprobs, tokens, expected(tokens))


def test_more_of_them_than_an_answer_may_have_are_refused(client: Any) -> None:
    prompt = [[7, 9] * 1000] * 13
    with pytest.raises(openai.BadRequestError, match="546000 log probabilities for prompts of 26000 tokens"):
        score(client, prompt, logprobs=20, max_tokens=0)
    assert len(score(client, prompt[:2], logprobs=0, max_tokens=0).choices) == 2


def test_the_token_that_ends_an_answer_is_reported(client: Any) -> None:
    """Harnesses leave out the last token, and take it for the generated one."""
    options = {"logit_bias": {"2": 100}, "max_tokens": 5}  # </s>
    [choice] = score(client, [10, 11, 12], **options).choices
    assert (choice.logprobs.tokens[3:], choice.finish_reason) == (["</s>"], "stop")
    [alone] = score(client, [10, 11, 12], echo=False, **options).choices
    assert (alone.text, alone.logprobs.tokens, alone.logprobs.text_offset) == ("", ["</s>"], [0])


def test_tokens_of_the_same_text_have_different_keys() -> None:
    texts = {1: "a", 2: "\ufffd", 3: "\ufffd"}
    top = ((2, -0.5), (3, -1.0), (1, -1.5))

    def decode(tokens: Any) -> Any:
        return "".join(texts[token] for token in tokens)

    told = decode_prompt_logprobs([1, 3], [None, TokenLogprobs(3, -1.0, top)], decode, decode)
    [first, second] = format_completion_logprobs(told)["top_logprobs"]
    assert first is None
    assert second == {"token_id:2": -0.5, "\ufffd": -1.0, "a": -1.5}
