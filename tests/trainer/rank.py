"""One of several processes that train together, job after job, so that torch is imported once.

A line of standard input is JSON: `argv`, `place`, and perhaps `rows` (a file for the rows of each batch) and `stop_at`
(the batch at which it sends itself SIGTERM). It answers with its result.
"""

import json
import os
import sys
from pathlib import Path

import recording
from hone_trainer.distributed.ranks import Rank
from hone_trainer.main import parse_options
from hone_trainer.runtime.options import RunOptions
from hone_trainer.runtime.signals import StopSignal
from hone_trainer.training.trainer import HoneTrainer
from hone_trainer.worker import run_and_report


def serve() -> None:
    environ, original = dict(os.environ), HoneTrainer.training_step
    for line in sys.stdin:
        request = json.loads(line)
        options = parse_options(request["argv"])
        assert isinstance(options, RunOptions)
        HoneTrainer.training_step = original  # type: ignore[method-assign]
        if request.get("rows"):
            recording.record_rows(Path(request["rows"]))
        if request.get("stop_at"):
            recording.stop_at(request["stop_at"])
        stop = StopSignal()
        stop.install_handlers()
        word = run_and_report(options, Rank(**request["place"]), stop)
        stop.ignore_signals()
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(environ)
        print(word.traceback, file=sys.stderr, flush=True)
        print(word.model_dump_json(), flush=True)


if __name__ == "__main__":
    serve()
