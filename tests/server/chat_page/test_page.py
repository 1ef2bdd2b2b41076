"""The chat page, in a headless Chromium that the test controls."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hone_server.http.pages import PAGE_FILES

KEY = "key-of-the-page"


@pytest.fixture(scope="module")
def chatty(
    serve: Callable[..., AbstractContextManager[Any]],
    base_folder: Path,
    artifact: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Return a server with a key, whose base and adapter both chat, with a context of 256 tokens."""
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(KEY)
    claim = f"models={base_folder.parent}"
    with serve(str(artifact), "--claim", claim, "--api-key-file", str(file), "--max-model-len", "256") as server:
        yield server


def test_base_and_adapter_answer_in_columns_and_remember(browse: Any, chatty: Any) -> None:
    page = browse(f"{chatty.url}/", KEY)
    assert "API key" in page.until("document.getElementById('problem').textContent")
    page.choose("key", KEY)
    page.until("document.querySelectorAll('#model option').length === 2")
    assert page.run("[model.value, beside.value, document.getElementById('problem').hidden]") == ["support", "", True]
    page.choose("beside", "tiny-llama")
    assert page.run("[...document.querySelectorAll('h2')].map((h) => h.textContent)") == ["support", "tiny-llama"]

    # Answers of random weights are long and strange: they are shortened here, and recorded with their questions.
    page.run("""
      const original = window.fetch;
      window.asked = [];
      window.fetch = (path, options) => {
        const body = JSON.parse(options.body);
        window.asked.push(body);
        const short = { ...body, max_tokens: 12, temperature: 0, ignore_eos: true };
        return original(path, { ...options, body: JSON.stringify(short) });
      };
    """)
    page.say("hello <b>world</b>")
    first = page.answered()
    assert [column[0] for column in first] == ["hello <b>world</b>"] * 2
    assert first[0][1] != first[1][1]
    assert all(answer for _, answer in first)
    page.say("and you?")
    second = page.answered()
    assert [column[:3] for column in second] == [[*column, "and you?"] for column in first]
    asked = {
        body["model"]: [message["content"] for message in body["messages"]] for body in page.run("asked").copy()[2:]
    }
    assert asked == {"support": second[0][:3], "tiny-llama": second[1][:3]}
    page.run("document.getElementById('clear').click()")
    assert page.answered() == [[], []]
    refused = [fault for fault in page.faults if "401" not in str(fault)]
    assert refused == []
    assert {url.split("/")[2] for url in page.requested if not url.startswith("data:")} == {chatty.url.split("/")[2]}


def test_an_answer_comes_in_pieces_and_can_be_stopped(browse: Any, server: Any, until: Callable[..., None]) -> None:
    page = browse(f"{server.url}/")
    page.until("document.querySelectorAll('#model option').length === 3")
    page.choose("model", "tiny-llama")
    page.run("""
      const original = window.fetch;
      window.fetch = (path, options) => {
        const body = JSON.stringify({ ...JSON.parse(options.body), ignore_eos: true });
        return original(path, { ...options, body });
      };
    """)
    page.say("tell me everything")
    page.until("(document.querySelector('.assistant')?.textContent.length ?? 0) > 5")
    assert server.running("tiny-llama") == 1
    page.run("document.getElementById('stop').click()")
    page.answered()
    until(lambda: server.running("tiny-llama") == 0)
    assert page.run("document.getElementById('problem').hidden")


def test_the_api_is_shown_as_a_page(browse: Any, chatty: Any) -> None:
    page = browse(f"{chatty.url}/docs", KEY)
    page.until("document.querySelectorAll('details').length > 0")
    summaries = page.run("[...document.querySelectorAll('summary')].map((s) => s.textContent)")
    assert {"POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models/{name}"} <= set(summaries)
    rows = "[...document.querySelectorAll('tr')].map((r) => [...r.children].map((c) => c.textContent).join(': '))"
    told = page.run(rows)
    assert {"temperature: number; ≥ 0; ≤ 2", "model: string; required", "ignore_eos: boolean"} <= set(told)
    assert page.faults == []
    assert {url.split("/")[2] for url in page.requested if not url.startswith("data:")} == {chatty.url.split("/")[2]}


def test_the_pages_allow_nothing_from_elsewhere(server: Any) -> None:
    for path in PAGE_FILES:
        answer = server.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "://" not in answer.text
