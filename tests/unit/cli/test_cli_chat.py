"""`hone chat` against an HTTP server that speaks OpenAI's streaming protocol."""

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hone import engine as client
from hone.engine import Model
from hone.errors import ClientError
from hone.objects.views import require_available
from hone_api.schema.crd import UNOBSERVED
from hone_cli.commands.chat import choose_model
from hone_cli.commands.side_by_side import print_answers_in_columns
from hone_cli.main import main
from rich.console import Console


class Engine(ThreadingHTTPServer):
    """Answers every conversation with its model and its number of messages; keeps the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.models: list[dict[str, Any]] = [
            {"id": "tiny/base", "kind": "base"},
            {"id": "faq", "kind": "adapter", "parent": "tiny/base"},
        ]
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.status = 200
        # The model whose answers break off; "all".
        self.broken: str | None = None


class Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        self._send(200, "application/json", json.dumps({"object": "list", "data": self.server.models}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(asked)
        self.server.keys.append(self.headers["Authorization"])
        if self.server.status != 200:
            self._send(self.server.status, "application/json", json.dumps({"error": {"message": "still loading"}}))
            return
        pieces = ["", asked["model"], " heard ", str(len(asked["messages"]))]
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
        chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {}}]
        events = [": comment\n\n", *(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)]
        if self.server.broken not in ("all", asked["model"]):
            events.append("data: [DONE]\n\n")
        self._send(200, "text/event-stream", "".join(events))

    def _send(self, status: int, kind: str, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat(engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Run `hone chat` on the engine; return exit code, stdout, stderr."""

    def run(*arguments: str, stdin: str = "", url: str = engine.url) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main(["chat", "--url", url, *arguments])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err  # type: ignore[return-value]

    return run


def test_a_message_prints_the_answer_only_and_prefers_the_adapter(chat: Chat, engine: Engine) -> None:
    code, out, err = chat("--message", "hello")
    assert (code, out) == (0, "faq heard 1\n")
    assert "Model: faq (also there: tiny/base)" in err
    assert engine.requests == [
        {"model": "faq", "messages": [{"role": "user", "content": "hello"}], "stream": True},
    ]


def test_the_history_goes_with_every_question(chat: Chat, engine: Engine) -> None:
    code, out, _ = chat(stdin="one\n\ntwo\n/exit\nthree\n")
    assert (code, out) == (0, "faq heard 1\nfaq heard 3\n")
    assert [message["content"] for message in engine.requests[1]["messages"]] == ["one", "faq heard 1", "two"]


def test_two_models_answer_the_same_questions(chat: Chat, engine: Engine) -> None:
    code, out, _ = chat("--beside", "tiny/base", stdin="one\ntwo\n")
    lines = ["[faq] faq heard 1", "[tiny/base] tiny/base heard 1", "[faq] faq heard 3", "[tiny/base] tiny/base heard 3"]
    assert (code, out.splitlines()) == (0, lines)
    said = [[message["content"] for message in request["messages"]] for request in engine.requests[2:]]
    assert said == [["one", "faq heard 1", "two"], ["one", "tiny/base heard 1", "two"]]
    assert chat("--beside", "tiny/base", "-m", "hi")[1].splitlines() == lines[:2]


def test_a_second_model_joins_and_leaves(chat: Chat) -> None:
    _, out, err = chat(stdin="one\n/beside tiny/base\ntwo\n/model faq\nthree\n/beside nope\n")
    lines = ["faq heard 1", "[faq] faq heard 1", "[tiny/base] tiny/base heard 1", "faq heard 3"]
    assert out.splitlines() == lines
    assert "there is no model nope" in err


def test_the_key_comes_from_the_environment(chat: Chat, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    chat("-m", "hi")
    monkeypatch.setenv("HONE_API_KEY", "s3cret")
    chat("-m", "hi")
    assert engine.keys == [None, "Bearer s3cret"]
    engine.status = 401
    assert "HONE_API_KEY" in chat("-m", "hi")[2]


def test_the_end_of_input_ends_the_chat(chat: Chat) -> None:
    assert chat(stdin="one\n")[:2] == (0, "faq heard 1\n")


def test_commands_change_and_list_the_models_and_forget(chat: Chat) -> None:
    code, out, err = chat(stdin="/model tiny/base\nhi\n/clear\nhi\n/models\n/model nope\n/what\n")
    assert (code, out) == (0, "tiny/base heard 1\ntiny/base heard 1\n")
    assert "* tiny/base (base)\n  faq (adapter)\n" in err
    assert "there is no model nope\n  The engine has: tiny/base, faq" in err
    assert err.count("/models lists the models") == 2


def test_a_failed_answer_is_not_in_the_history(chat: Chat, engine: Engine) -> None:
    engine.broken = "all"
    _, _, err = chat(stdin="one\ntwo\n")
    assert "broke off" in err
    assert [len(request["messages"]) for request in engine.requests] == [1, 1]


def test_when_one_of_two_models_fails_neither_remembers(chat: Chat, engine: Engine) -> None:
    engine.broken = "tiny/base"
    chat("--beside", "tiny/base", stdin="one\ntwo\n")
    asked = [(request["model"], len(request["messages"])) for request in engine.requests]
    assert asked == [("faq", 1), ("tiny/base", 1), ("faq", 1), ("tiny/base", 1)]


@pytest.mark.parametrize("stdin", ["/beside faq\none\n", ""])
def test_a_model_is_not_compared_with_itself(chat: Chat, stdin: str) -> None:
    options = [] if stdin else ["--beside", "faq"]
    code, out, err = chat(*options, stdin=stdin)
    assert (code, out) == ((0, "faq heard 1\n") if stdin else (1, ""))
    assert "faq is already asked" in err


def test_adapters_of_vllm_are_recognized_by_their_parent(chat: Chat, engine: Engine) -> None:
    engine.models = [{"id": "tiny/base", "parent": None}, {"id": "faq", "parent": "tiny/base"}]
    assert chat("--message", "hello")[1] == "faq heard 1\n"


def test_an_engine_that_refuses_is_quoted(chat: Chat, engine: Engine) -> None:
    engine.status = 503
    code, out, err = chat("--message", "hello")
    assert (code, out) == (1, "")
    assert "503" in err
    assert "still loading" in err
    assert "Traceback" not in err


def test_without_an_engine_the_message_names_the_command_to_start_one(chat: Chat) -> None:
    code, _, err = chat("--message", "hello", url="http://127.0.0.1:1/v1")
    assert code == 1
    assert "no engine answers at http://127.0.0.1:1/v1" in err
    assert "hone serve" in err


def test_another_kind_of_server_is_named(chat: Chat, engine: Engine) -> None:
    engine.models = [{"title": "not a model"}]
    assert "is not an OpenAI-compatible API" in chat("--message", "hello")[2]


def test_a_name_and_a_url_exclude_each_other(chat: Chat) -> None:
    code, _, err = chat("faq")
    assert code == 2
    assert "not both" in err


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (["no json"], "an event that is no JSON object: no json"),
        (["[1]"], "an event that is no JSON object"),
        (["[" * 5000], "an event that is no JSON object"),
        (['{"error": "out of memory"}'], "broke off: out of memory"),
        (['{"error": {"message": "out of memory"}}'], "broke off: out of memory"),
        (['{"error": null}'], "broke off: no reason given"),
        (['{"choices": null}', '{"choices": [1, {"delta": null}, {"delta": {"content": 5}}]}'], "in the middle"),
    ],
)
def test_an_answer_of_another_form_is_a_failure_with_a_message(events: list[str], said: str) -> None:
    with pytest.raises(ClientError, match=re.escape(said)):
        list(client._read_pieces(iter(f"data: {event}" for event in events)))


def test_choosing_a_model() -> None:
    base, adapter = Model("base", "base"), Model("adapter", "adapter")
    assert choose_model([base, adapter], None) == "adapter"
    assert choose_model([base], None) == "base"
    assert choose_model([base, adapter], "base") == "base"
    with pytest.raises(ClientError, match="lists no model"):
        choose_model([], None)


def test_an_unavailable_service_is_reported_with_its_reason() -> None:
    service = {
        "metadata": {"name": "faq"},
        "status": {
            "conditions": [
                {"type": "Accepted", "status": "True", "reason": "Valid", "message": ""},
                {"type": "ArtifactsResolved", "status": "False", "reason": "ArtifactMissing", "message": "no such job"},
                {"type": "Available", "status": "False", "reason": "Waiting", "message": "nothing runs"},
            ]
        },
    }
    with pytest.raises(ClientError) as raised:
        require_available(service)
    assert raised.value.remedy == "ArtifactsResolved: ArtifactMissing: no such job\n  Available: Waiting: nothing runs"
    service["status"]["conditions"][2]["status"] = "True"  # type: ignore[index]
    require_available(service)
    for status in ({}, {"status": UNOBSERVED}):
        with pytest.raises(ClientError, match="no status yet"):
            require_available({"metadata": {"name": "faq"}, **status})


def test_on_a_terminal_two_answers_are_shown_in_columns(engine: Engine) -> None:
    shown = io.StringIO()
    asked = {name: [{"role": "user", "content": "hi"}] for name in ("faq", "tiny/base")}
    answers = print_answers_in_columns(client.Engine(engine.url, remedy=""), asked, Console(file=shown, width=60))
    assert answers == {"faq": "faq heard 1", "tiny/base": "tiny/base heard 1"}
    assert [line.split() for line in shown.getvalue().splitlines() if "heard" in line] == [
        ["faq", "heard", "1", "tiny/base", "heard", "1"]
    ]


def test_on_a_terminal_the_command_shows_columns(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hone_cli.ui.output.is_terminal", lambda: True)
    code, out, _ = chat("--beside", "tiny/base", "-m", "hi")
    assert code == 0
    assert [line.split() for line in out.splitlines() if "heard" in line] == [
        ["faq", "heard", "1", "tiny/base", "heard", "1"]
    ]


def test_on_a_terminal_both_answers_are_lost_when_one_breaks_off(engine: Engine) -> None:
    engine.broken = "faq"
    asked = {name: [{"role": "user", "content": "hi"}] for name in ("faq", "tiny/base")}
    with pytest.raises(ClientError, match="broke off"):
        print_answers_in_columns(client.Engine(engine.url, remedy=""), asked, Console(file=io.StringIO()))
