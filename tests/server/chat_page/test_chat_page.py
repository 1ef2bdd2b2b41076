"""The chat page in a browser, with answers made for it: on small screens, refused, stopped, kept, and exported."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from hone_api.finetunejobs.spec import FineTuneJob
from hone_server.http.pages import add_pages
from hone_trainer.data import dataset
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.inputs.named_datasets import NamedDataset

LONG_NAME = "a-team/an-assistant-for-questions-about-the-handbook-of-our-support-department-v2"
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CALL = [
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"city":'}},
    {"index": 0, "function": {"arguments": '"Paris"}'}},
]


class Scripted:
    """The page's server, with an answer scripted for each question; `asked` has the requests."""

    def __init__(self) -> None:
        self.asked = []
        app = FastAPI()
        add_pages(app)
        app.get("/v1/models")(lambda: {"data": [{"id": "short", "kind": "base"}, {"id": LONG_NAME, "kind": "adapter"}]})
        app.post("/v1/chat/completions")(self._answer)
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"

    async def _answer(self, request: Request) -> Any:
        body = await request.json()
        self.asked.append(body)
        question = body["messages"][-1]["content"]
        if question.startswith("refuse") and body["model"] != "short":
            return JSONResponse({"error": {"message": "does not fit"}}, status_code=400)
        return StreamingResponse(self._events(question), media_type="text/event-stream")

    async def _events(self, question: Any) -> AsyncIterator[Any]:
        deltas = [{"role": "assistant", "content": ""}]
        if "tool" in question:
            deltas += [{"tool_calls": [part]} for part in CALL]
        elif "json" in question:
            deltas += [{"content": '{"city":"Paris",'}, {"content": '"tags":[1]}'}]
        elif "silent" not in question:
            deltas += [{"content": "This is half "}] if "slow" in question else [{"content": f"answer to {question}"}]
        for delta in deltas:
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': None}]})}\n\n"
        if "lost" in question:
            return
        if "slow" in question or "silent" in question:
            await asyncio.sleep(600)
        yield "data: [DONE]\n\n"

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def scripted() -> Iterator[Any]:
    server = Scripted()
    yield server
    server.close()


@pytest.fixture
def chat(browse: Any, scripted: Any) -> Any:
    scripted.asked.clear()
    page = browse(scripted.url)
    page.until("document.querySelectorAll('#model option').length === 2")
    return page


VALUE = "document.getElementById('question').value"
PROBLEM = "document.getElementById('problem').textContent"


def click(page: Any, field: Any) -> None:
    page.run(f"document.getElementById('{field}').click()")


def reload(page: Any) -> None:
    page.run("window.isOld = true")
    page.call("Page.reload")
    page.until("!window.isOld && document.readyState === 'complete'")
    page.until("document.querySelectorAll('#model option').length === 2")


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_nothing_scrolls_sideways(chat: Any, width: int) -> None:
    chat.call("Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=width < 700)
    chat.run("settings.open = true")
    chat.choose("beside", "short")
    chat.run("options.value = JSON.stringify({ tools: [] })")
    for question in ("word" * 200, "tool", "json", "refuse " + "x" * 500):
        chat.say(question)
        chat.answered()
    wide = "[...document.querySelectorAll('*')].filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth && "
    wide += "getComputedStyle(e).overflowX !== 'hidden' && !e.matches('select, option, input')).map((e) => e.outerHTML)"
    assert chat.run(wide) == []
    outside = f"[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > {width})"
    assert chat.run(f"{outside}.map((e) => e.outerHTML)") == []
    assert chat.run("document.getElementById('columns').getBoundingClientRect().height") > 100


def test_a_refused_question_stays_in_the_field_and_is_asked_only_of_those_that_refused_it(
    chat: Any, scripted: Any
) -> None:
    chat.say("hello")
    chat.answered()
    chat.say("refuse this")
    assert chat.answered() == [["hello", "answer to hello"]]
    assert chat.run(VALUE) == "refuse this"
    assert "does not fit" in chat.run(PROBLEM)
    chat.run("question.value = ''")
    chat.choose("beside", "short")
    chat.say("refuse that")
    assert chat.answered() == [[], ["refuse that", "answer to refuse that"]]
    assert chat.run(VALUE) == "refuse that"
    scripted.asked.clear()
    chat.say("")
    chat.answered()
    assert [body["model"] for body in scripted.asked] == [LONG_NAME]


def test_fields_that_are_not_json_keep_the_question(chat: Any, scripted: Any) -> None:
    for given, reason in [("{", "not JSON"), ("[]", "must be a JSON object"), ('{"n": 2}', "have n")]:
        chat.run(f"options.value = {json.dumps(given)}; question.value = ''")
        chat.say("hello")
        assert reason in chat.run(PROBLEM)
        assert chat.run(VALUE) == "hello"
    assert scripted.asked == []


@pytest.mark.parametrize("end", ["stop", "lost"])
def test_the_history_of_an_unfinished_answer_is_what_is_shown(chat: Any, scripted: Any, end: str) -> None:
    chat.say("slow" if end == "stop" else "slow and lost")
    chat.until("document.querySelector('.assistant')?.textContent === 'This is half '")
    if end == "stop":
        click(chat, "stop")
    shown = chat.answered()[0]
    assert len(shown) == 2
    assert (chat.run(PROBLEM) != "") == (end == "lost")
    chat.say("go on")
    chat.answered()
    assert [message["content"] for message in scripted.asked[-1]["messages"]] == [*shown, "go on"]
    assert all(set(message) == {"role", "content"} for message in scripted.asked[-1]["messages"])


def test_an_answer_under_way_is_kept_when_the_page_is_left(chat: Any, scripted: Any) -> None:
    chat.say("hello")
    chat.answered()
    chat.say("slow")
    chat.until("document.querySelectorAll('.assistant')[1]?.textContent === 'This is half '")
    reload(chat)
    assert chat.answered() == [["hello", "answer to hello", "slow", "This is half "]]
    assert chat.run("[...document.querySelectorAll('.assistant')].map((m) => m.dataset.end ?? null)") == [
        None,
        "incomplete",
    ]


def test_a_question_stopped_before_its_answer_returns_to_the_field(chat: Any, scripted: Any) -> None:
    chat.say("silent")
    chat.until("!document.getElementById('stop').hidden")
    click(chat, "stop")
    assert chat.answered() == [[]]
    assert chat.run(VALUE) == "silent"


def test_tool_calls_and_json_are_shown_indented_and_sent_as_they_came(chat: Any, scripted: Any) -> None:
    chat.say("json")
    chat.say("")
    assert chat.answered()[0][1] == '{\n  "city": "Paris",\n  "tags": [\n    1\n  ]\n}'
    chat.say("tool")
    chat.answered()
    assert chat.run("document.querySelector('.call strong').textContent") == "get_weather"
    assert chat.run("document.querySelector('.call pre').textContent") == '{\n  "city": "Paris"\n}'
    chat.say("thanks")
    chat.answered()
    _, answer, _, called, _ = scripted.asked[-1]["messages"]
    assert answer["content"] == '{"city":"Paris","tags":[1]}'
    assert called["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city":"Paris"}'}


def test_conversations_are_kept_until_they_are_deleted(chat: Any) -> None:
    titles = "[...conversation.options].map((o) => o.textContent)"
    for question in ("first", "second"):
        chat.say(question)
        chat.answered()
        click(chat, "clear")
    assert chat.answered() == [[]]
    reload(chat)
    assert chat.run(titles) == ["New conversation", "second", "first"]
    assert chat.answered() == [["second", "answer to second"]]
    chat.choose("conversation", chat.run("conversation.options[2].value"))
    assert chat.answered() == [["first", "answer to first"]]
    click(chat, "delete")
    assert chat.run(titles) == ["New conversation", "second"]
    reload(chat)
    assert chat.run(titles) == ["New conversation", "second"]
    chat.run("localStorage.setItem('hone-chat/broken', '{}')")
    reload(chat)
    assert chat.run(titles) == ["New conversation", "second"]
    assert chat.faults == []


def test_an_exported_conversation_is_a_dataset_of_a_job(chat: Any, tmp_path: Path) -> None:
    chat.run(f"options.value = {json.dumps(json.dumps({'tools': TOOLS}))}")
    for question in ("hello \u2028 <b>", "tool", "json"):
        chat.say(question)
        chat.answered()
    folder = tmp_path / "exported"
    chat.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    click(chat, "export")
    deadline = time.monotonic() + 60
    while not (files := list(folder.glob("*.jsonl"))):
        assert time.monotonic() < deadline, chat.faults
        time.sleep(0.05)
    assert len(files[0].read_bytes().splitlines()) == 1
    spec = {"model": {"name": "a/b"}, "dataset": {"claim": {"name": "chats"}}}
    job = FineTuneJob.model_validate(
        {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "exported"}, "spec": spec}
    )
    found = dataset.locate_dataset(NamedDataset(job.spec.dataset), JobInputs(job, {"chats": folder}, {}, {}), None)
    loaded = dataset.load_rows(found, 0, tmp_path / "scratch")
    assert loaded.format == "messages"
    assert loaded.warnings == []
    [(_, row)] = loaded.iterate_rows()
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 3
    assert row["messages"][0]["content"] == "hello \u2028 <b>"
    assert row["messages"][3]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert row["messages"][5]["content"] == '{"city":"Paris","tags":[1]}'
