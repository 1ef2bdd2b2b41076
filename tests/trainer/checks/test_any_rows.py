"""Any combination of rows and templates is prepared, or refused by name."""

import contextlib
from collections.abc import Callable
from typing import Any

from hone_api.reasons import HoneError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    ["", " \n", "<|im_end|>", "</think>", "<think>\na\n</think>\nb", "a"]
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "asistant", "human", "", "developer"])
FLAGS = st.sampled_from([{}, {}, {}, {"weight": 0}, {"train": False}, {"weight": 1}])
MESSAGE = st.builds(lambda role, content, flags: {"role": role, "content": content} | flags, ROLES, TEXT, FLAGS)
CALL = st.just({"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]})
CHAT = st.lists(MESSAGE | CALL, min_size=1, max_size=4)
ROWS = st.one_of(
    st.lists(st.builds(lambda chat: {"messages": chat}, CHAT), min_size=1, max_size=3),
    st.lists(
        st.builds(lambda asked, given: {"prompt": asked, "completion": given}, CHAT, CHAT), min_size=1, max_size=3
    ),
    st.lists(st.builds(lambda text: {"text": text}, TEXT), min_size=1, max_size=3),
    st.lists(
        st.builds(lambda asked, given: {"prompt": asked, "completion": given}, TEXT, TEXT), min_size=1, max_size=3
    ),
)
PIECES = [
    "{{ m.role }}", "{{ m.content }}", "{{ m.content.strip() }}", "{{ m['content'][0] }}",
    "{{ m.tool_calls[0].function }}",
    "<|im_start|>", "<|im_end|>", "\n", "{{ eos_token }}", "{{ 1 / loop.index0 }}", "{{ m.content | tojson }}",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}",
    "{% if loop.last and add_generation_prompt %}assistant: {% endif %}", "{{ m.content + 'x' }}",
    "{% if loop.first and m.role != 'user' %}{{ raise_exception('user first') }}{% endif %}",
    "{{ m.content.split('</think>')[1] }}",
]  # fmt: skip
TEMPLATE = st.lists(st.sampled_from(PIECES), max_size=5).map(
    lambda pieces: "{% for m in messages %}" + "".join(pieces) + "{% endfor %}"
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example(
    rows=[{"messages": [{"role": "assistant", "content": None}, {"role": "assistant", "content": "a"}]}],
    template=f"{{% for m in messages %}}{PIECES[11]}{{% endfor %}}",
    adds="",
    assistant=True,
)
@given(rows=ROWS, template=TEMPLATE | st.none(), adds=st.sampled_from(["", "begin", "end"]), assistant=st.booleans())
def test_rows_are_prepared_or_refused_by_name(
    warnings_of: Callable[..., list[str]],
    tokenizer_of: Callable[..., Any],
    rows: list[dict[str, Any]],
    template: str | None,
    adds: str,
    assistant: bool,
) -> None:
    tokenizer = tokenizer_of("<|im_end|>", template, begin="<s>", adds=adds)
    with contextlib.suppress(HoneError):
        found = warnings_of(rows, tokenizer, assistant_only_loss=assistant)
        assert all(f"of {len(rows)} rows to train on" in text or "the chat template" in text for text in found)
