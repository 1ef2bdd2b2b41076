"""Every command, and every other way to print, with text that tries to steer the terminal it runs on."""

import contextlib
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hone.kube import cluster, job_watch
from hone_api.reasons import DATASET_INVALID, HoneError
from hone_cli.commands import watch
from hone_cli.main import main
from hone_cli.ui import output
from hone_trainer import main as trainer
from hone_trainer.progress.terminal import Terminal

url, folder, payload = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
bad = folder / f"{payload.replace('/', '')}.yaml"
text = json.dumps(payload)


def case(name: Any, run: Any) -> None:
    print(f"<<<{name}>>>", flush=True)
    with contextlib.suppress(SystemExit):
        run()


def hone(*arguments: Any) -> Callable[..., Any]:
    return lambda: main([*map(str, arguments)])


def manifest(content: Any) -> Any:
    bad.write_text(content)
    return bad


def job(kind: Any) -> Any:
    metadata, spec = {"name": payload, payload: 1}, {"model": payload, payload: payload}
    return json.dumps({"kind": kind, "apiVersion": "hone.dev/v1alpha1", "metadata": metadata, "spec": spec})


case("missing", hone("validate", bad))
case("kind", hone("validate", manifest(job(payload))))
case("name", hone("validate", manifest(job("FineTuneJob"))))
case("not hone's", hone("validate", manifest(f"kind: {text}\nmetadata: {{name: {text}}}\n")))
case("tag", hone("validate", manifest(f"kind: !<{'tag:x'}> {text}\n")))
case("twice", hone("validate", manifest(f"{text}: 1\n{text}: 2\n")))
case("document", hone("validate", manifest(f"{text}\n")))
for command in ("run", "prepare", "plan", "serve"):
    case(command, hone(command, manifest(job("FineTuneJob"))))
    case(f"{command} missing", hone(command, folder / f"no{payload}"))
case("claim", hone("run", bad, "--claim", payload))
case("verbose", hone("run", folder / payload, "--verbose"))
output._verbose = False
case("usage", hone("validate", f"--{payload}"))
case("command", hone(payload))
case("answer", hone("chat", "--url", url, "-m", "hi"))
case("beside", hone("chat", "--url", url, "-m", "hi", "--beside", "base"))
case("refused", hone("chat", "--url", url, "-m", "refuse"))
case("broken", hone("chat", "--url", url, "-m", "break"))
case("model", hone("chat", "--url", url, "-m", "hi", "--model", payload))
case("url", hone("chat", "--url", f"http://127.0.0.1:1/{payload}", "-m", "hi"))

running = {"type": "Running", "status": "False", "reason": payload, "message": payload}
pending = {"status": {"stage": payload, "conditions": [running]}}
failed = {"status": {"stage": "Failed", "conditions": [running | {"type": "Failed"}]}}
done = {
    "status": {
        "stage": "Succeeded",
        "metrics": {payload: 1},
        "artifact": dict.fromkeys(("kind", "claim", "path", "digest", "baseModel"), payload),
    }
}
case("watch live", lambda: watch.show_live(iter([pending, done])))
case("watch lines", lambda: watch.show_lines(iter([pending, done])))
for name, ended in (("succeeded", done), ("failed", failed)):
    job_watch.follow_job, watch.show_live = lambda *_, ended=ended: iter([ended]), lambda jobs: next(jobs)
    cluster.connect = lambda *_: None
    case(name, hone("watch", payload))


def show_terminal() -> None:
    with Terminal() as terminal:
        terminal.print_note(payload)
        terminal.print_warnings([payload])
        terminal.print_sample([(payload, True), (payload, False)])


case("trainer", show_terminal)
case("trainer fails", lambda: trainer.print_failure(HoneError(DATASET_INVALID, payload, remedy=payload), payload))
case("trainer manifest", lambda: trainer.main(["plan", str(manifest(f"{text}: 1\n{text}: 2\n"))]))
case("trainer merge", lambda: trainer.main(["merge", str(folder / payload), str(folder / "out")]))
case("log", lambda: logging.getLogger("x").error("%s", payload))
case("warning", lambda: warnings.warn(payload, stacklevel=1))


def fail_in_thread() -> None:
    thread = threading.Thread(target=int, args=[payload])
    thread.start()
    thread.join()


case("thread", fail_in_thread)
case("uncaught", lambda: sys.excepthook(ValueError, ValueError(payload), None))
print("<<<end>>>")
