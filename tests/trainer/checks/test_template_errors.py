"""A chat template may raise any exception, anywhere: the row and the template are named, and nothing is retried."""

from collections.abc import Callable
from typing import Any

import pytest
from hone_api.finetunejobs.spec import EvaluationOptions
from hone_api.reasons import HoneError
from hone_trainer.data import chat_templates
from hone_trainer.preparation import prompts

Warnings = Callable[..., list[str]]
Tokenizers = Callable[..., Any]

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
BAD = [{"role": "user", "content": "bad"}, {"role": "assistant", "content": "ho"}]
KINDS = {
    "messages": [{"messages": CHAT}, {"messages": BAD}],
    "pairs": [{"prompt": CHAT[:1], "completion": CHAT[1:]}, {"prompt": BAD[:1], "completion": BAD[1:]}],
}
# What a template does, and how the message about it ends.
RAISED = {
    "{{ raise_exception('not so') }}": "not so",
    "{{ 'a' + 1 }}": "TypeError: ",
    "{{ strftime_now(1) }}": "TypeError: ",
    "{{ 1 / 0 }}": "ZeroDivisionError: ",
    "{{ messages.nothing.more }}": "UndefinedError: ",
    "{{ [][1:][0] + {}['a'] }}": "UndefinedError: ",
    "{{ messages.append(1) }}": "SecurityError: ",
    "{{ ''.__class__.__mro__ }}": "SecurityError: ",
    "{{ 2.0 ** 10000 }}": "OverflowError: ",
    "{% for n in range(10 ** 9) %}{% endfor %}": "OverflowError: ",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError: ",
}


def expect(raising: str) -> str:
    """Return how the failure begins: a refusal of the template is the row's fault, everything else the template's."""
    reason, verb = ("DatasetInvalid", "refuses") if "raise_exception" in raising else ("InvalidSpec", "fails for")
    return f"{reason}: The chat template {verb} rows.jsonl, line 2: {RAISED[raising]}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raising", RAISED)
def test_an_exception_of_a_template_names_the_row(
    warnings_of: Warnings, tokenizer_of: Tokenizers, raising: str, kind: str
) -> None:
    template = f"{{% if messages[0].content == 'bad' %}}{raising}{{% endif %}}" + CHATML
    with pytest.raises(HoneError) as refused:
        warnings_of(KINDS[kind], tokenizer_of("<|im_end|>", template))
    assert f"{refused.value.reason.name}: {refused.value.message}".startswith(expect(raising))
    assert "spec.dataset.chatTemplate" in refused.value.remedy


@pytest.mark.parametrize("raising", RAISED)
def test_an_exception_for_only_the_generation_prompt_names_the_row(
    warnings_of: Warnings, tokenizer_of: Tokenizers, raising: str
) -> None:
    condition = "add_generation_prompt and messages[0].content == 'bad'"
    template = CHATML + f"{{% if {condition} %}}{raising}{{% endif %}}"
    with pytest.raises(HoneError) as refused:
        warnings_of(KINDS["pairs"], tokenizer_of("<|im_end|>", template))
    assert f"{refused.value.reason.name}: {refused.value.message}".startswith(expect(raising))


@pytest.mark.parametrize("raising", RAISED)
def test_an_exception_for_a_prompt_of_the_evaluation_names_the_prompt(tokenizer_of: Tokenizers, raising: str) -> None:
    options = EvaluationOptions.model_validate({"prompts": ["hi"]})
    with pytest.raises(HoneError, match=r"spec\.evaluation\.prompts\[0\] is refused by the chat template: "):
        prompts.encode_prompts(options, tokenizer_of("<|im_end|>", raising), lambda: None)


@pytest.mark.parametrize("prompt", ["", "hi"])
def test_a_prompt_of_the_evaluation_without_a_token_is_refused(tokenizer_of: Tokenizers, prompt: str) -> None:
    options = EvaluationOptions.model_construct(prompts=[prompt], max_new_tokens=4)
    tokenizer = tokenizer_of("<|im_end|>", "{{ '' }}" if prompt else None)
    with pytest.raises(HoneError, match="which gives no token"):
        prompts.encode_prompts(options, tokenizer, lambda: None)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}",
        "{{ m.role }",
        "{{ 'a' | nofilter }}",
        "{% nonsense %}",
        "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    ],
)
def test_a_template_that_can_not_be_read_is_refused(tokenizer_of: Tokenizers, template: str) -> None:
    with pytest.raises(HoneError, match=r"spec\.dataset\.chatTemplate can't be read, line \d+: "):
        chat_templates.check_syntax(template, tokenizer_of("</s>"), "spec.dataset.chatTemplate")


def test_a_template_that_renders_nothing_is_refused(warnings_of: Warnings, tokenizer_of: Tokenizers) -> None:
    with pytest.raises(HoneError, match="None of 2 rows to train on gives a token") as refused:
        warnings_of(KINDS["messages"], tokenizer_of("</s>", "{{ '' }}"))
    assert refused.value.reason.name == "DatasetInvalid"


def test_several_templates_without_a_default_are_refused(warnings_of: Warnings, tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of("<|im_end|>", CHATML)
    tokenizer.chat_template = {"tool_use": CHATML, "rag": CHATML}
    options = EvaluationOptions.model_validate({"prompts": ["hi"]})
    for call in (
        lambda: warnings_of(KINDS["messages"], tokenizer),
        lambda: warnings_of(KINDS["messages"], tokenizer, assistant_only_loss=True),
        lambda: prompts.encode_prompts(options, tokenizer, lambda: None),
    ):
        with pytest.raises(HoneError, match=r"several chat templates \(rag, tool_use\), and none is named default"):
            call()
    tokenizer.chat_template = {"default": CHATML, "tool_use": CHATML}
    assert not warnings_of(KINDS["messages"], tokenizer)


MARKED = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}",
)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (CHAT[:1], "line 2 has no assistant message"),
        ([CHAT[0], {"role": "assistant", "content": ""}], "line 2 has only empty assistant messages"),
        (BAD, "marks no token of the assistant's turns in rows.jsonl, line 2"),
    ],
)
def test_a_row_in_which_nothing_is_marked_is_named(
    warnings_of: Warnings, tokenizer_of: Tokenizers, row: list[dict[str, str]], words: str
) -> None:
    template = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and messages[0].content != 'bad'")
    with pytest.raises(HoneError) as refused:
        warnings_of(
            [{"messages": CHAT}, {"messages": row}], tokenizer_of("<|im_end|>", template), assistant_only_loss=True
        )
    assert words in refused.value.message
    assert refused.value.reason.name in ("DatasetInvalid", "InvalidSpec")


def test_a_template_that_fails_for_another_text_of_an_excluded_message_is_named(
    warnings_of: Warnings, tokenizer_of: Tokenizers
) -> None:
    template = CHATML.replace("m.content", "m.content.split('i')[1].strip()")
    row = {"messages": [CHAT[0] | {"weight": 0}, {"role": "assistant", "content": "it"}]}
    with pytest.raises(HoneError, match="can't be left out of the loss: the chat template fails") as refused:
        warnings_of([row], tokenizer_of("<|im_end|>", template))
    assert refused.value.reason.name == "DatasetInvalid"
