"""Chat templates of real models: good data gives no warning, and the token that ends their turns is found."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from hone_api.reasons import HoneError
from trl.chat_template_utils import has_generation_markers

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
# They take content as a list of parts, and print nothing for a string.
TAKES_PARTS = {"idefics3", "idefics3_training", "smolvlm", "smolvlm_training"}
FAILS_FOR_STRINGS = {"llava_next", "llava_next_training"}
# The token that ends a turn is the next turn's first.
NEVER_ENDS = {"glm4moe"}
# They print what follows </think>, in the last turn as well.
DROPS_REASONING = {"deepseek_r1_distill", "deepseekv3", "deepseekv3_training"}
TURNS = [
    [
        {"role": "user", "content": " What is one? \n"},
        {"role": "assistant", "content": "One is 1."},
        {"role": "user", "content": "And two?"},
        {"role": "assistant", "content": '<think>\nhm\n</think>\n\nTwo is 2.\nAnd "that" is it.'},
    ],
    [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "Hello you"}],
]
MESSAGES = [{"messages": messages} for messages in TURNS]
PAIRS = [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in TURNS]
Warnings = Callable[..., list[str]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_turn_is_found_and_good_rows_give_no_warning(
    warnings_of: Warnings, tokenizer_of: Callable[..., Any], name: str
) -> None:
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_of("</s>", template, begin="<bos>")
    if name in FAILS_FOR_STRINGS:
        with pytest.raises(HoneError, match="The template takes content as a list of parts"):
            warnings_of(MESSAGES, tokenizer)
        return
    first = warnings_of(MESSAGES, tokenizer)
    stops = set()
    if name in NEVER_ENDS:
        assert "do not teach the model to stop: end the assistant's turns" in first.pop()
    elif not name.startswith("phi3"):  # those end with the tokenizer's own end token
        stop = re.search(r"they end with '(.+?)', and generation stops at '</s>'", first.pop())
        assert stop
        assert stop[1] in template
        stops.add(stop[1])
    if name in DROPS_REASONING:
        assert "have reasoning in their last answer, which the chat template leaves out" in first.pop()
    lost = [f"in messages of role {role} that the chat template leaves out" for role in ("assistant", "user")]
    assert len(first) == (2 if name in TAKES_PARTS else 0), first
    assert all(words in warning for words, warning in zip(lost, first, strict=False))

    kinds: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [(MESSAGES, {}), (PAIRS, {})]
    if has_generation_markers(template):
        kinds.append((MESSAGES, {"assistant_only_loss": True}))
    for rows, training in kinds:
        found = warnings_of(rows, tokenizer, stops=stops, **training)
        allowed = ["leaves out", "do not teach", *(["ends differently"] if "</think>" in template else [])]
        false = [text for text in found if not any(words in text for words in allowed)]
        assert not false
        assert any("do not teach" in text for text in found) == (name in NEVER_ENDS)
