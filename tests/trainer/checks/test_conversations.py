"""Turns of unknown roles, empty answers, and text that the chat template leaves out."""

from collections.abc import Callable
from typing import Any

import pytest
from hone_trainer.checks.conversations import MOST_ROLES, suggest_role

Warnings = Callable[..., list[str]]
Tokenizers = Callable[..., Any]

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


def chat(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


@pytest.mark.parametrize(
    ("role", "meant"),
    [
        ("User", "user"), ("ASSISTANT ", "assistant"), ("asistant", "assistant"), ("assisstant", "assistant"),
        ("human", "user"), ("gpt", "assistant"), ("model", "assistant"), ("sytem", "system"), ("tools", "tool"),
        ("observation", "tool"), ("narrator", None), ("", None),
    ],
)  # fmt: skip
def test_near_misses_of_roles_are_recognized(role: str, meant: str | None) -> None:
    assert suggest_role(role) == meant


def test_unknown_roles_are_counted_and_named(warnings_of: Warnings, tokenizer_of: Tokenizers) -> None:
    rows = [
        {"messages": [USER, ANSWER]},
        chat(("user", "a"), ("asistant", "b"), ("user", "c"), ("assistant", "d")),
        chat(("narrator", "a"), ("assistant", "b")),
        chat(("narrator", "a"), ("user", "a"), ("assistant", "b")),
    ]
    tokenizer = tokenizer_of("<|im_end|>", CHATML)
    assert warnings_of(rows, tokenizer) == [
        "2 of 4 rows to train on have messages of the unknown role 'narrator': known are system, developer, user, "
        "assistant, tool (first: rows.jsonl, line 3)",
        "1 of 4 rows to train on have messages of the unknown role 'asistant': did you mean assistant? "
        "(first: rows.jsonl, line 2)",
    ]
    tokenizer.chat_template = CHATML.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    assert (
        "with assistantOnlyLoss nothing of them is learned" in warnings_of(rows, tokenizer, assistant_only_loss=True)[1]
    )


def test_a_role_that_the_template_names_is_known(warnings_of: Warnings, tokenizer_of: Tokenizers) -> None:
    template = CHATML.replace("{{ m.role }}", "{{ 'ipython' if m.role == 'ipython' else m.role }}")
    rows = [chat(("user", "a"), ("ipython", "1"), ("assistant", "b"))]
    assert not warnings_of(rows, tokenizer_of("<|im_end|>", template))
    gemma = CHATML.replace("{{ m.role }}", "{{ 'model' if m.role == 'assistant' else m.role }}")
    found = warnings_of([chat(("user", "a"), ("model", "b"))], tokenizer_of("<|im_end|>", gemma))
    assert "unknown role 'model': did you mean assistant?" in found[1]


def test_many_unknown_roles_are_not_all_listed(warnings_of: Warnings, tokenizer_of: Tokenizers) -> None:
    rows = [chat((f"speaker {number}", "a"), ("assistant", "b")) for number in range(20)]
    found = warnings_of(rows, tokenizer_of("<|im_end|>", CHATML))
    assert len(found) == MOST_ROLES
    assert "and 15 more unknown roles are not shown" in found[-1]


@pytest.mark.parametrize("nothing", ["", "  \n\t"])
def test_empty_answers_are_counted(warnings_of: Warnings, tokenizer_of: Tokenizers, nothing: str) -> None:
    tokenizer = tokenizer_of("<|im_end|>", CHATML)
    asked = [{"role": "user", "content": "a"}]
    empty = {"role": "assistant", "content": nothing}
    kinds: list[tuple[list[dict[str, Any]], str]] = [
        ([{"text": "a"}, {"text": nothing}], "have no text but whitespace"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": nothing}], "have an empty completion"),
        ([{"messages": [USER, ANSWER]}, {"messages": [USER, empty]}], "have an empty assistant message"),
        (
            [{"prompt": asked, "completion": [ANSWER]}, {"prompt": asked, "completion": [empty]}],
            "have an empty assistant message",
        ),
    ]
    for rows, words in kinds:
        (found,) = warnings_of(rows, tokenizer)
        assert found.startswith(f"1 of 2 rows to train on {words}: the model learns to ")
        assert found.endswith("nothing (first: rows.jsonl, line 2)")


def test_rows_without_an_answer_are_counted(warnings_of: Warnings, tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of("<|im_end|>", CHATML)
    words = "1 of 2 rows to train on have no assistant message, and so no answer to learn (first: rows.jsonl, line 2)"
    assert warnings_of([{"messages": [USER, ANSWER]}, {"messages": [USER]}], tokenizer) == [words]
    rows = [{"prompt": [USER], "completion": [ANSWER]}, {"prompt": [USER, ANSWER], "completion": [USER]}]
    assert warnings_of(rows, tokenizer) == [words]


def test_a_call_in_place_of_text_is_not_empty(warnings_of: Warnings, tokenizer_of: Tokenizers) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    template = CHATML.replace("{{ m.content }}", "{{ m.tool_calls or m.content }}")
    assert not warnings_of(
        [{"messages": [{"role": "user", "content": "hi"}, call]}], tokenizer_of("<|im_end|>", template)
    )


@pytest.mark.parametrize("skipped", ["system", "user", "assistant", "tool"])
def test_text_that_the_template_leaves_out_is_counted_by_role(
    warnings_of: Warnings, tokenizer_of: Tokenizers, skipped: str
) -> None:
    template = CHATML.replace("{{ m.content }}", f"{{% if m.role != '{skipped}' %}}{{{{ m.content }}}}{{% endif %}}")
    rows = [
        chat(("system", "Be kind."), ("user", "hi"), ("tool", '{"a": 1}'), ("assistant", "ho")),
        chat(("system", ""), ("user", " "), ("tool", ""), ("assistant", "")),
    ]
    found = warnings_of(rows[:1], tokenizer_of("<|im_end|>", template))
    assert found == [
        f"1 of 1 rows to train on have text in messages of role {skipped} that the chat template leaves out: correct "
        "spec.dataset.chatTemplate, or leave such messages out (first: rows.jsonl, line 1)"
    ]
    assert not [text for text in warnings_of(rows[1:], tokenizer_of("<|im_end|>", template)) if "leaves out" in text]


@pytest.mark.parametrize("way", ["m.content | trim", "m.content | tojson", "m.content | upper | lower"])
def test_text_that_the_template_writes_in_another_way_is_not_left_out(
    warnings_of: Warnings, tokenizer_of: Tokenizers, way: str
) -> None:
    rows = [chat(("user", ' he said "no"\n\tand   left \u00e9\u4f60 '), ("assistant", "ok"))]
    assert not warnings_of(rows, tokenizer_of("<|im_end|>", CHATML.replace("m.content", way)))
