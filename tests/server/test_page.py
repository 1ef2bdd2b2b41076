"""The chat page, in a headless Chromium that its own DevTools protocol steers."""

import itertools
import json
import os
import shutil
import subprocess
import time

import httpx
import pytest
import websocket

KEY = "key-of-the-page"


class Page:
    """A tab of the browser. `faults` has what its console and its security policy complained of."""

    def __init__(self, url):
        self._socket = websocket.create_connection(url, timeout=60, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.faults, self.requested = [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message):
        params = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.faults.append(params["exceptionDetails"])
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.faults.append(params["entry"]["text"])

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script, seconds=60):
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"), self.faults)
            time.sleep(0.05)
        return value

    def choose(self, field, value):
        self.run(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('change'))")

    def say(self, text):
        """Types and presses Enter, as a person does."""
        self.run("question.focus()")
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def answered(self):
        """The columns' messages, once nothing is under way any more."""
        self.until("document.getElementById('stop').hidden && !document.querySelector('.waiting')")
        each = "[...s.querySelectorAll('.message')].map((m) => m.textContent)"
        return self.run(f"[...document.querySelectorAll('section')].map((s) => {each})")


@pytest.fixture(scope="module")
def chromium():
    if not shutil.which("chromium"):
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            pytest.fail("needs chromium; on Debian: apt-get install chromium")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        install = ["apt-get", "-qq", "install", "--no-install-recommends", "chromium"]
        subprocess.run(install, check=True, env=environment, stdout=subprocess.DEVNULL)
    return "chromium"


@pytest.fixture
def browse(chromium, tmp_path):
    """Opens an address in a browser of its own."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words = [chromium, *options, "--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'profile'}", "about:blank"]
    with open(tmp_path / "chromium.log", "w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    port_file = tmp_path / "profile" / "DevToolsActivePort"

    def open_page(url, key=None):
        deadline = time.monotonic() + 60
        while not port_file.exists() or "\n" not in port_file.read_text():
            assert time.monotonic() < deadline, (tmp_path / "chromium.log").read_text()
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        tabs = httpx.get(f"http://127.0.0.1:{port}/json", timeout=60).json()
        page = Page(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
        if key:  # as a user types it where the browser asks for a password
            page.call("Page.navigate", url=f"{url.replace('://', f'://hone:{key}@').rpartition('/')[0]}/chat.css")
            page.until("document.readyState === 'complete' && location.pathname === '/chat.css'")
            page.requested.clear()
        page.call("Page.navigate", url=url)
        page.until("document.readyState === 'complete' && !!document.querySelector('main')")
        return page

    yield open_page
    process.terminate()
    try:
        process.wait(timeout=20)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def chatty(serve, base_folder, artifact, tmp_path_factory):
    """A server with a key, whose base and adapter both chat, at most 256 tokens together."""
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(KEY)
    claim = f"models={base_folder.parent}"
    with serve(str(artifact), "--claim", claim, "--api-key-file", str(file), "--max-model-len", "256") as server:
        yield server


def test_base_and_adapter_answer_side_by_side_and_remember(browse, chatty):
    page = browse(f"{chatty.url}/", KEY)
    assert "API key" in page.until("document.getElementById('problem').textContent")
    page.choose("key", KEY)
    page.until("document.querySelectorAll('#model option').length === 2")
    assert page.run("[model.value, beside.value, document.getElementById('problem').hidden]") == ["support", "", True]
    page.choose("beside", "tiny-llama")
    assert page.run("[...document.querySelectorAll('h2')].map((h) => h.textContent)") == ["support", "tiny-llama"]

    # Answers of random weights are long and strange: they are kept short here, and recorded with their questions.
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


def test_an_answer_comes_in_pieces_and_can_be_stopped(browse, server, until):
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


def test_the_api_is_shown_as_a_page(browse, chatty):
    page = browse(f"{chatty.url}/docs", KEY)
    page.until("document.querySelectorAll('details').length > 0")
    summaries = page.run("[...document.querySelectorAll('summary')].map((s) => s.textContent)")
    assert {"POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models/{name}"} <= set(summaries)
    rows = "[...document.querySelectorAll('tr')].map((r) => [...r.children].map((c) => c.textContent).join(': '))"
    told = page.run(rows)
    assert {"temperature: number; ≥ 0; ≤ 2", "model: string; required", "ignore_eos: boolean"} <= set(told)
    assert page.faults == []
    assert {url.split("/")[2] for url in page.requested if not url.startswith("data:")} == {chatty.url.split("/")[2]}


def test_the_pages_allow_nothing_from_elsewhere(server):
    for path in ("/", "/chat.js", "/chat.css", "/docs", "/docs.js", "/docs.css"):
        answer = server.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "://" not in answer.text
