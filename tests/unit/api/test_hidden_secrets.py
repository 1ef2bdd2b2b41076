"""Messages never have the secrets that a server may quote."""

import pytest
from hone_api.io.terminal import hide_secrets
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "secrets", "shown"),
    [
        ("denied: opensesame", ["opensesame"], "denied: ***"),
        ("xopensesamex", ["opensesame"], "x***x"),
        ("user u has no upload rights", ["u"], "user *** has no upload rights"),
        ("the password +3+ is wrong", ["+3+"], "the password *** is wrong"),
        ("Basic dTpw: u:p", ["dTpw", "p", ""], "Basic ***: u:***"),
        ("one-and-more", ["one-and", "one-and-more"], "***"),
        ("nothing to hide", [], "nothing to hide"),
    ],
)
def test_secrets_are_replaced(text: str, secrets: list[str], shown: str) -> None:
    assert hide_secrets(text, secrets) == shown


@given(st.text(), st.text(min_size=8).filter(lambda secret: "*" not in secret), st.text())
def test_a_long_secret_is_hidden_anywhere(before: str, secret: str, after: str) -> None:
    assert hide_secrets(before + secret + after, [secret]).count(secret) == 0
