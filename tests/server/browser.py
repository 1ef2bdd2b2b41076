"""Control a headless Chromium through its DevTools protocol."""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websocket
from run_isolation import build_lock


class Page:
    """A tab of the browser. `faults` has the errors of its console and its security policy."""

    def __init__(self, url: Any) -> None:
        self._socket = websocket.create_connection(url, timeout=60, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.faults, self.requested = [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: Any, **params: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: Any) -> None:
        params = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.faults.append(params["exceptionDetails"])
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.faults.append(params["entry"]["text"])

    def run(self, script: Any) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: Any, seconds: int = 60) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"), self.faults)
            time.sleep(0.05)
        return value

    def choose(self, field: Any, value: Any) -> None:
        self.run(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('change'))")

    def say(self, text: Any) -> None:
        """Type the text and press Enter, as a user does."""
        self.run("question.focus()")
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def answered(self) -> Any:
        """Return the columns' messages once no answer is running."""
        self.until("document.getElementById('stop').hidden && !document.querySelector('.waiting')")
        each = "[...s.querySelectorAll('.message')].map((m) => m.textContent)"
        return self.run(f"[...document.querySelectorAll('section')].map((s) => {each})")


def install_chromium() -> None:
    """Install the package, unless another process has just done it."""
    if shutil.which("chromium"):
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-qq", "update"], check=True)
    install = ["apt-get", "-qq", "install", "--no-install-recommends", "chromium"]
    subprocess.run(install, check=True, env=environment, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def chromium() -> str:
    if not shutil.which("chromium"):
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            pytest.fail("needs chromium; on Debian: apt-get install chromium")
        with build_lock(Path(tempfile.gettempdir(), "hone-chromium")):
            install_chromium()
    return "chromium"


@pytest.fixture
def browse(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """Open an address in a new browser."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words = [chromium, *options, "--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'profile'}", "about:blank"]
    with open(tmp_path / "chromium.log", "w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    port_file = tmp_path / "profile" / "DevToolsActivePort"

    def open_page(url: Any, key: Any = None) -> Any:
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
