"""The OpenAI API through OpenAI's own client: answers, parameters, errors."""

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hone_api.artifacts.manifest import read_manifest
from transformers import AutoModelForCausalLM, AutoTokenizer

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello world"}]


def chat(client: Any, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny-llama", "messages": MESSAGES, "max_tokens": 8, **options})


def complete(client: Any, **options: Any) -> Any:
    return client.completions.create(**{"model": "tiny-llama", "prompt": "hello", "max_tokens": 8, **options})


def refused(call: Any, **options: Any) -> Any:
    """Return the error's body of a call that is answered with 400."""
    with pytest.raises(openai.BadRequestError) as error:
        call(**options)
    assert set(error.value.body) == {"message", "type", "param", "code"}
    assert error.value.body["type"] == "invalid_request_error"
    return error.value.body


def test_models_are_listed_with_kind_parent_and_digest(client: Any, artifact: Path) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["tiny-llama", "support", "legal"]
    assert [(m.kind, m.parent, m.digest) for m in models.values()] == [
        ("base", None, None),
        ("adapter", "tiny-llama", read_manifest(artifact).digest),
        ("adapter", "tiny-llama", None),
    ]
    assert client.models.retrieve("support").owned_by == "hone"
    assert {model.max_model_len for model in models.values()} == {2048}


def test_a_chat_is_answered(client: Any) -> None:
    answer = chat(client, temperature=0)
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert answer.model == "tiny-llama"
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_greedy_answers_are_those_of_transformers(client: Any, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    inputs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    outputs = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    expected = tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert chat(client, temperature=0, max_tokens=32).choices[0].message.content == expected


def test_text_parts_are_one_text(client: Any) -> None:
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]
    whole = chat(client, messages=[{"role": "user", "content": "hello world"}], temperature=0)
    assert chat(client, messages=[{"role": "user", "content": parts}], temperature=0).choices == whole.choices


def test_max_completion_tokens_goes_before_max_tokens(client: Any) -> None:
    assert chat(client, max_completion_tokens=3).usage.completion_tokens == 3


def test_a_completion_has_sixteen_tokens_by_default(client: Any) -> None:
    assert complete(client, max_tokens=None, extra_body={"ignore_eos": True}).usage.completion_tokens == 16


def test_prompts_as_texts_and_as_tokens(client: Any, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    texts = ["hello world", "we tune"]
    tokens = [tokenizer(text)["input_ids"] for text in texts]
    of_texts = complete(client, prompt=texts, temperature=0)
    of_tokens = complete(client, prompt=tokens, temperature=0)
    alone = [complete(client, prompt=one, temperature=0).choices[0].text for one in (*texts, *tokens)]
    assert [choice.text for choice in of_texts.choices] == [choice.text for choice in of_tokens.choices] == alone[:2]
    assert alone[2:] == alone[:2]
    assert of_texts.usage.prompt_tokens == sum(map(len, tokens))


def test_several_choices_differ_and_count_the_prompt_once(client: Any) -> None:
    one = chat(client, n=1, seed=5)
    three = chat(client, n=3, seed=5)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in three.choices}) == 3
    assert three.choices[0].message.content == one.choices[0].message.content
    assert three.usage.prompt_tokens == one.usage.prompt_tokens


def test_a_stop_string_ends_the_answer_before_it(client: Any) -> None:
    whole = complete(client, temperature=0, max_tokens=40).choices[0].text
    stop = whole[10:13]
    answer = complete(client, temperature=0, max_tokens=40, stop=[stop, "never to be seen"])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 40


@pytest.mark.parametrize("top", [{"top_p": 1e-9}, {"extra_body": {"top_k": 1}}])
def test_the_narrowest_sampling_is_greedy(client: Any, top: dict[str, Any]) -> None:
    greedy = chat(client, temperature=0, max_tokens=16).choices[0].message.content
    assert chat(client, temperature=1, max_tokens=16, **top).choices[0].message.content == greedy


@pytest.mark.parametrize("temperature", [5e-324, 1e-39, 1e-6])
def test_a_tiny_temperature_is_greedy(client: Any, temperature: float) -> None:
    greedy = complete(client, temperature=0).choices[0].text
    assert complete(client, temperature=temperature, seed=1).choices[0].text == greedy


def test_a_tiny_repetition_penalty_repeats_earlier_tokens(client: Any) -> None:
    answers = [
        complete(client, prompt="hello", temperature=0, extra_body={"repetition_penalty": penalty, "ignore_eos": True})
        for penalty in (1e-45, 1e-6)
    ]
    assert answers[0].choices[0].text == answers[1].choices[0].text


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"extra_body": {"min_p": 0.1}}, "min_p"),
        ({"stream": True, "stream_options": {"chunk_size": 5}}, "stream_options.chunk_size"),
        ({"extra_body": {"tempreature": 1}}, "tempreature"),
    ],
)
def test_unsupported_parameters_that_would_change_the_answer_are_refused_by_name(
    client: Any, options: dict[str, Any], param: str
) -> None:
    error = refused(chat, client=client, **options)
    assert error["param"] == param
    assert error["code"] == "unsupported_parameter"
    assert repr(param) in error["message"]


def test_parameters_without_effect_are_accepted(client: Any) -> None:
    neutral = {"logprobs": False, "presence_penalty": 0, "tools": [], "response_format": {"type": "text"}, "user": "me"}
    assert chat(client, **neutral).choices


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a", 5]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_invalid_values_are_refused_by_name(client: Any, options: dict[str, Any], param: str) -> None:
    assert refused(chat, client=client, **options)["param"] == param


@pytest.mark.parametrize("prompt", ["", [], [[]], [99999], [-1]])
def test_an_empty_or_impossible_prompt_is_refused(client: Any, prompt: Any) -> None:
    assert refused(complete, client=client, prompt=prompt)["param"] == "prompt"


def test_an_unknown_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        chat(client, model="nobody")
    assert error.value.body["code"] == "model_not_found"
    assert error.value.body["param"] == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("options", "param"),
    [({"prompt": [5] * 2048}, "max_tokens"), ({"prompt": [5] * 3000, "max_tokens": None}, "prompt")],
)
def test_too_long_a_request_is_refused_with_the_limit(client: Any, options: dict[str, Any], param: str) -> None:
    error = refused(complete, client=client, **options)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == param
    assert "2048 tokens" in error["message"]


def test_a_chat_without_max_tokens_may_fill_the_context(client: Any) -> None:
    long = [{"role": "user", "content": "hello world " * 480}]
    answer = chat(client, messages=long, max_tokens=None, extra_body={"ignore_eos": True})
    assert answer.usage.total_tokens == 2048


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("body", [{}, [], "text", {"model": 5}])
def test_bodies_of_another_shape_are_refused(server: Any, path: str, body: Any) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_errors_of_http_have_the_same_shape(server: Any) -> None:
    headers = {"Content-Type": "application/json"}
    not_json = httpx.post(server.url + "/v1/completions", content="{nope", headers=headers)
    assert (not_json.status_code, not_json.json()["error"]["type"]) == (400, "invalid_request_error")
    assert server.get("/v1/nothing").json()["error"]["message"]
    wrong_method = server.get("/v1/chat/completions")
    assert (wrong_method.status_code, set(wrong_method.json())) == (405, {"error"})


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain; charset=utf-8", None])
def test_a_body_that_is_not_declared_as_json_is_refused_with_the_header(server: Any, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = httpx.post(server.url + "/v1/completions", content='{"model": "tiny-llama"}', headers=headers)
    assert answer.status_code == 400
    assert "send the body as JSON with the header 'Content-Type: application/json'" in answer.json()["error"]["message"]


def test_top_p_of_0_is_the_likeliest_token(client: Any) -> None:
    assert chat(client, top_p=0, seed=3).choices == chat(client, temperature=0).choices


def test_a_prompt_alone_is_returned_without_new_tokens(client: Any) -> None:
    answer = complete(client, max_tokens=0, echo=True)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello", "length")
    assert answer.usage.completion_tokens == 0


def test_a_history_with_tool_calls_is_answered(client: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    asked = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "user", "content": "hi"}]
    assert chat(client, messages=asked).choices


def test_metrics_count_tokens(server: Any, client: Any) -> None:
    def generated() -> Any:
        lines = server.get("/metrics").text.splitlines()
        prefix = 'hone:generation_tokens_total{model_name="tiny-llama"} '
        return next((float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)), 0.0)

    before = generated()
    complete(client, max_tokens=5, extra_body={"ignore_eos": True})
    assert generated() == before + 5


def test_a_model_without_a_chat_template_says_so(client: Any) -> None:
    error = refused(chat, client=client, model="legal")
    assert error["param"] == "messages"
    assert "no chat template" in error["message"]
