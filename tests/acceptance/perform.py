"""Run one step in a process of its own: read the context, run the step, and write its result to a file."""

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from acceptance.context import Context, Failed, NotRun


def main(function: str, context: Path, result: Path) -> None:
    """Run the function, given as `module:name`, and write its status, reason and figures."""
    result.write_text(json.dumps(perform(function, Context.from_json(context.read_text()))))


def perform(function: str, context: Context) -> dict[str, Any]:
    """Return how a step ended."""
    module, _, name = function.partition(":")
    try:
        return {"status": "passed", "reason": "", "figures": getattr(importlib.import_module(module), name)(context)}
    except NotRun as why:
        return {"status": "not run", "reason": str(why), "figures": {}}
    except Failed as why:
        return {"status": "failed", "reason": str(why), "figures": {}}
    except Exception as error:
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}", "figures": {}}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
