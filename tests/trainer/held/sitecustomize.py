"""Hold a trainer at a batch until it is stopped or killed, so that it can't end before the test acts.

Python imports this module at the start of a process when this folder is on PYTHONPATH. HONE_TEST_HOLD is `RANK:BATCH`:
the process of that rank waits before its BATCH-th batch, and continues once it has received SIGTERM.
"""

import functools
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULE = "hone_trainer.training.trainer"
RANK, BATCH = map(int, os.environ["HONE_TEST_HOLD"].split(":"))


class HoldingFinder(importlib.abc.MetaPathFinder):
    """Changes the trainer's module once it is imported: at the start of a process, that would take too long."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(name)
        assert found
        loader: Any = found.loader
        execute = loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            hold(module.HoneTrainer)

        loader.exec_module = execute_and_change
        return found


def hold(trainer: Any) -> None:
    original, count = trainer.training_step, 0

    @functools.wraps(original)
    def held(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if (self.args.process_index, count) == (RANK, BATCH):
            wait_for_sigterm()
        return original(self, *args, **kwargs)

    trainer.training_step = held


def wait_for_sigterm() -> None:
    handle: Any = signal.getsignal(signal.SIGTERM)
    is_received = False

    def receive(*given: Any) -> None:
        nonlocal is_received
        handle(*given)
        is_received = True

    signal.signal(signal.SIGTERM, receive)
    while not is_received:
        time.sleep(0.01)
    signal.signal(signal.SIGTERM, handle)


sys.meta_path.insert(0, HoldingFinder())
