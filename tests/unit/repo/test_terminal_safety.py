"""No text that others wrote steers a terminal: not in any command, and not through anything that prints elsewhere."""

import ast
import json
import os
import pty
import subprocess
import sys
import threading
import unicodedata
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hone_api.io.terminal import make_printable
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[3]
PRINTERS = {
    "crds/hone_api/io/terminal.py",
    "crds/hone_api/schema/generate.py",  # for developers only
    "cli/hone_cli/ui/output.py",
    "cli/hone_cli/ui/console.py",
    "trainer/hone_trainer/progress/terminal.py",
}
PAYLOAD = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202e[red]:x:"


WRITERS = {"print_exc", "print_exception", "echo", "secho", "confirm", "prompt", "Console", "Live"}


def printing(tree: ast.AST) -> list[str]:
    """Return the calls that write to a terminal on a way of their own."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            shows = name.rpartition(".")[2] in WRITERS and "console" not in {word.arg for word in node.keywords}
            if shows or name == "print" or name.startswith(("sys.stdout.w", "sys.stderr.w")):
                found.append(name)
    return found


def test_only_the_modules_for_output_print() -> None:
    files = [*ROOT.glob("*/hone_*/**/*.py"), *ROOT.glob("client/hone/**/*.py")]
    assert len(files) > 100
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        if name not in PRINTERS:
            assert not printing(ast.parse(file.read_text())), name
    assert printing(ast.parse("print(1); typer.echo(2); Console(); Live()")) == [
        "print",
        "typer.echo",
        "Console",
        "Live",
    ]


@given(st.text(alphabet=st.characters(codec=None)))
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = make_printable(text)
    shown.encode()
    for letter in shown:
        assert letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(letter) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    assert make_printable(shown) == shown


@pytest.mark.parametrize("text", ["a\tb\nc", "é ß 漢字 שלום", "👩‍👩‍👧 می‌خواهم", "back\\slash"])
def test_text_of_any_language_stays(text: str) -> None:
    assert make_printable(text) == text
    assert make_printable(text.replace("\n", "\r\n")) == text


def test_a_terminal_with_another_encoding_gets_the_text_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text('apiVersion: v1\nkind: "\u00e9\\ud83d\\ude00"\n', encoding="utf-8")
    command = [sys.executable, "-m", "hone_cli", "validate", str(path), str(path) + "\udcff"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.stderr == ""
    assert "\\xe9\\U0001f600" in done.stdout
    assert "can't be read" in done.stdout


class Engine(BaseHTTPRequestHandler):
    """Lists a model whose name is the payload, and answers, refuses or breaks off with it."""

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "base"}, {"id": PAYLOAD, "parent": "base"}]}))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        error = {"error": {"message": PAYLOAD}}
        if "refuse" in body:
            self._send(json.dumps(error), 400)
        else:
            answer = error if "break" in body else {"choices": [{"delta": {"content": PAYLOAD}}]}
            self._send(f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n")

    def _send(self, body: str, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_no_command_lets_text_steer_the_terminal(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"COLUMNS": "1000", "TERM": "xterm"}
        os.execv(
            sys.executable, [sys.executable, str(ROOT / "tests/unit/hostile_output.py"), url, str(tmp_path), PAYLOAD]
        )
    written = b""
    try:
        while piece := os.read(terminal, 65536):
            written += piece
    except OSError:  # the end of a terminal
        pass
    os.waitpid(child, 0)
    server.shutdown()
    screen = written.decode()
    assert screen.rstrip().endswith("<<<end>>>"), screen[-3000:]
    for part in screen.split("<<<")[1:-1]:
        name, _, shown = part.partition(">>>")
        for escape in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\u202e"):
            assert escape not in shown, (name, shown)
        assert "pwned" in shown, (name, shown)
        if name != "watch live":  # where the line is cut
            assert "[red]:x:" in shown, (name, shown)
            assert r"\x1b[2J" in shown, (name, shown)
