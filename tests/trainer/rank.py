"""One of several processes that train together, job after job, so that torch is imported once.

A line of standard input is JSON: `argv`, `place`, and `limit` (bytes of address space that it may take beyond what it
has). It answers with its last word.
"""

import json
import os
import resource
import sys
from pathlib import Path

from hone_trainer.main import parse
from hone_trainer.options import Options
from hone_trainer.processes import Place
from hone_trainer.stop import Stop
from hone_trainer.worker import last_word


def serve() -> None:
    environ = dict(os.environ)
    for line in sys.stdin:
        asked = json.loads(line)
        options = parse(asked["argv"])
        assert isinstance(options, Options)
        stop = Stop()
        stop.listen()
        before = resource.getrlimit(resource.RLIMIT_AS)
        if asked["limit"]:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + asked["limit"], before[1]))
        word = last_word(options, Place(**asked["place"]), stop)
        resource.setrlimit(resource.RLIMIT_AS, before)
        stop.ignore()
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(environ)
        print(word.traceback, file=sys.stderr, flush=True)
        print(word.model_dump_json(), flush=True)


if __name__ == "__main__":
    serve()
