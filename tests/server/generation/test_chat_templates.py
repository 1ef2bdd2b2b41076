"""A chat template is a program: however it fails, the client gets a 400 with the message, and soon."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hone_server.artifacts.sources import ModelEntry
from hone_server.engine.sampler import SamplingParams
from hone_server.generation import prompts
from hone_server.generation.generate import make_chat_tasks
from hone_server.generation.served_model import make_served_model
from hone_server.protocol.errors import ApiError
from hone_server.protocol.requests import ChatRequest
from hypothesis import given
from hypothesis import strategies as st
from inprocess import Lane
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

MESSAGES = [{"role": "user", "content": "hello", "deep": 0}]
FAILURES = {
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
    "{{ messages[0]['content'].index('</think>') }}": "substring not found",
    "{{ '{}'.format() }}": "index",
    "{{ 1 // 0 }}": "zero",
    "{{ 1 % 0 }}": "zero",
    "{% for i in range(10**9) %}{% endfor %}": "Range",
    "{% for i in range(10**30) %}{% endfor %}": "",
    "{{ nothing.of_it }}": "undefined",
    "{{ messages[7]['content'] }}": "",
    "{{ messages['a']['b'] }}": "",
    "{{ 5()  }}": "not callable",
    "{{ [] + 1 }}": "concatenate",
    "{{ {'a': 1} | sort(attribute='x') | first + 1 }}": "",
    "{{ messages | tojson(indent='x' * 3) + 1 }}": "",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% for": "",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ messages[0].update({'a': 1}) }}": "",
    "{{ '%d' % 'x' }}": "",
    "{{ '%c' | format(10**9) }}": "",
}


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(base_folder)


def refusal(tokenizer: Any, template: Any) -> Any:
    tokenizer.chat_template = template
    with pytest.raises(ApiError) as caught:
        prompts.render_chat(tokenizer, MESSAGES, add_generation_prompt=True)
    assert (caught.value.status, caught.value.param) == (400, "messages")
    return caught.value.message


@pytest.mark.parametrize("template", FAILURES)
def test_any_failure_of_a_template_is_a_refusal_with_its_message(tokenizer: Any, template: str) -> None:
    message = refusal(tokenizer, template)
    assert message.startswith("the chat template refuses these messages: ")
    assert FAILURES[template] in message
    assert len(message) > len("the chat template refuses these messages: ")


HUGE = {
    "{{ 10 ** (10 ** 9) }}": "**",
    "{{ (-3) ** (2 ** 30) }}": "**",
    "{{ 2 ** 40000 * 2 ** 40000 }}": "product of numbers",
    "{{ 'ab' * 10 ** 9 }}": "repeated",
    "{{ 10 ** 12 * 'ab' }}": "repeated",
    "{{ ([0] * 2 ** 21) * 2 ** 20 }}": "repeated",
    "{{ messages * 10 ** 9 }}": "repeated",
    "{{ 'a'.center(10 ** 10) }}": "width",
    "{{ 'a'['ljust'](width=10 ** 10) }}": "width",
    "{{ ('a' | attr('zfill'))(10 ** 10) }}": "width",
    "{{ 'a' | center(10000000000) }}": "width",
    "{{ 'a\\nb' | indent(10 ** 10) }}": "width",
    "{{ messages | tojson(indent=10 ** 10) }}": "width",
    "{{ '%10000000000d' % 1 }}": "width",
    "{{ '%.10000000000f' | format(1) }}": "width",
    "{{ '%*d' % (10 ** 9, 1) }}": "width",
    "{{ '%(a)10000000000d' % {'a': 1} }}": "width",
    "{{ '{:>10000000000}'.format(1) }}": "width",
    "{{ '{a:{b}}'.format(a=1, b=10 ** 10) }}": "width",
    "{{ '{a:{b}}'.format_map({'a': 1, 'b': 10 ** 10}) }}": "width in a mapping",
}


@pytest.mark.parametrize("template", HUGE)
def test_one_operation_that_would_make_something_huge_is_refused(tokenizer: Any, template: str) -> None:
    message = refusal(tokenizer, template)
    assert "an operation of the template would make something of the size" in message


@pytest.mark.parametrize("first", ["{{ messages[0].content", "{% set x = 'b' %}{{ 'a'"])
def test_operations_of_normal_size_are_computed_as_by_jinja(tokenizer: Any, first: str) -> None:
    """Results are those of Jinja's own sandbox."""
    expressions = [
        "* 3", "~ 2 ** 64", "~ 7 * 6", "~ (-2) ** 3", "~ 2 ** -1", "~ 2.5 ** 2", "~ ('=' * 80)", "~ '%05.1f' % 3.14159",
        "~ '%s is 20240101' % 'x'", "~ '{:>8}|{}'.format('x', 20240101)", "~ '{0[a]}'.format({'a': 123456})",
        "~ ('x' | center(9))", "~ 'x'.rjust(8, '.')", "~ ('a\\nb' | indent(4))", "~ (messages | tojson(indent=2))",
        "~ ('%s %d' | format('a', 123456789))", "~ '{a:>{b}}'.format(a=1, b=9)", "~ ([1, 2] * 2)", "~ 5 % 3",
    ]  # fmt: skip
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = lambda given, indent=None: json.dumps(given, ensure_ascii=False, indent=indent)
    for one in expressions:
        tokenizer.chat_template = f"{first} {one} }}}}"
        expected = plain.from_string(tokenizer.chat_template).render(messages=MESSAGES)
        assert prompts.render_chat(tokenizer, MESSAGES, add_generation_prompt=True) == expected


VALUES = st.sampled_from(["messages", "messages[0]", "none", "''", "0", "1.5", "[]", "{}", "true", "nothing", "10**9"])
NAMES = (
    "abs batch(0) center dictsort first float groupby('x') int items join last list map max min random reverse round "
    "slice(0) sort string sum tojson trim truncate unique upper urlize wordcount wordwrap xmlattr"
)
FILTERS = st.sampled_from(NAMES.split())
OPERATORS = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "~", "<", "in", "and"])


@given(left=VALUES, operator=OPERATORS, right=VALUES, name=FILTERS)
def test_a_template_gives_a_text_or_a_refusal_and_nothing_else(
    tokenizer: Any, left: Any, operator: Any, right: Any, name: Any
) -> None:
    if "*" in operator and "10**9" in left + right:
        operator = "+"  # a product of gigabytes would be made in one step
    tokenizer.chat_template = f"{{{{ ({left} {operator} {right}) | {name} }}}}"
    try:
        text = prompts.render_chat(tokenizer, MESSAGES)
    except ApiError as error:
        assert error.status == 400  # noqa: PT017
    else:
        assert isinstance(text, str)


def test_an_endless_template_is_ended(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MAX_TEMPLATE_SECONDS", 0.1)
    loop = "{% for i in range(99999) %}"
    end = "{% endfor %}"
    assert "takes more than 0.1 s" in refusal(tokenizer, loop * 4 + end * 4)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    monkeypatch.undo()
    for _ in range(100):
        assert prompts.render_chat(tokenizer, MESSAGES) == "hello"


def test_a_text_that_does_not_fit_is_refused_by_its_beginning(tokenizer: Any) -> None:
    read = []

    def counting(text: Any, **options: Any) -> Any:
        read.append(len(text))
        return tokenizer(text, **options)

    text, longest = "hello, " * 28_000, prompts.measure_longest_token(tokenizer)
    with pytest.raises(ApiError, match="at least"):
        prompts.encode_prompt(counting, text, 2**14, longest, "prompt")
    assert read == [prompts.CHARACTERS_PER_TOKEN * 2**14]
    with pytest.raises(ApiError, match=f"has {len(text)} characters, and this model takes {64 * longest} at most"):
        prompts.encode_prompt(counting, text, 64, longest, "prompt")
    assert len(read) == 1


@given(text=st.text(max_size=40), repeat=st.integers(1, 3))
def test_the_longest_token_bounds_the_characters_of_a_text(tokenizer: Any, text: Any, repeat: Any) -> None:
    tokens = tokenizer(text * repeat)["input_ids"]
    assert len(text) * repeat <= len(tokens) * prompts.measure_longest_token(tokenizer)


KNOWN_ROLES = "{% for one in messages %}{% if one.role in ('system', 'user') %}[{{ one.role }}]{{ one.content }}"
STRICT_ROLES = KNOWN_ROLES + "{% else %}{{ raise_exception('Unexpected message role.') }}{% endif %}{% endfor %}"
SILENT_ROLES = KNOWN_ROLES + "{% endif %}{% endfor %}"
OPEN_ROLES = "{% for one in messages %}[{{ one.role }}]{{ one.content }}{% endfor %}"
OWN_DEVELOPER = "{% if messages[0].role == 'developer' %}{{ 'own' }}{% endif %}" + OPEN_ROLES


@pytest.mark.parametrize("template", [STRICT_ROLES, SILENT_ROLES])
@given(roles=st.lists(st.sampled_from(["system", "developer", "user"]), min_size=1, max_size=4))
def test_a_developer_is_the_system_where_the_template_does_not_know_it(
    tokenizer: Any, template: str, roles: list[str]
) -> None:
    messages = [{"role": role, "content": str(number)} for number, role in enumerate(roles)]
    expected = "".join(f"[{'user' if role == 'user' else 'system'}]{number}" for number, role in enumerate(roles))
    for named in (template, {"default": template, "tool_use": template}):
        tokenizer.chat_template = named
        assert prompts.render_chat(tokenizer, messages) == expected
    assert [one["role"] for one in messages] == roles


@pytest.mark.parametrize(("template", "expected"), [(OPEN_ROLES, ""), (OWN_DEVELOPER, "own")])
def test_a_template_that_shows_developers_gets_them(tokenizer: Any, template: str, expected: str) -> None:
    tokenizer.chat_template = template
    assert prompts.render_chat(tokenizer, [{"role": "developer", "content": "x"}]) == f"{expected}[developer]x"


@pytest.mark.parametrize("variables", [None, {}, {"enable_thinking": False}, {"enable_thinking": True, "unused": [1]}])
def test_variables_of_a_request_reach_the_template(tokenizer: Any, variables: Any) -> None:
    tokenizer.chat_template = "{{ 'a' if enable_thinking is defined and not enable_thinking else 'b' }}"
    model = make_served_model(
        ModelEntry("m", "model", "m"), tokenizer, Lane(len(tokenizer)), SamplingParams(1.0, 1.0, 0, 0)
    )  # type: ignore[arg-type]
    body: dict[str, Any] = {"model": "m", "messages": MESSAGES, "max_tokens": 1, "chat_template_kwargs": variables}
    [task] = make_chat_tasks(model, ChatRequest(**body))
    expected = "a" if variables == {"enable_thinking": False} else "b"
    assert task.prompt == tokenizer(expected, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["tokenizer", "conversations", "range", "raise_exception", "bos_token", "x y", ""])
def test_a_variable_of_any_name_gives_a_text_or_a_refusal(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = "{% for i in range(1) %}{{ messages[0].content }}{% endfor %}"
    prompts.check_template_variables({name: 5})
    with contextlib.suppress(ApiError):
        assert prompts.render_chat(tokenizer, MESSAGES, add_generation_prompt=True, **{name: 5}) == "hello"


@pytest.mark.parametrize("name", sorted(prompts.RESERVED_VARIABLES))
def test_variables_that_the_server_sets_are_refused_by_name(name: str) -> None:
    with pytest.raises(ApiError, match=f"'{name}'") as caught:
        prompts.check_template_variables({"enable_thinking": False, name: True})
    assert (caught.value.status, caught.value.param) == (400, "chat_template_kwargs")
