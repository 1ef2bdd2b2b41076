"""The Python client of Hone: fine-tune and serve models, in a cluster or on this machine.

    from hone import Client

    client = Client(local=True)
    job = client.train(model="HuggingFaceTB/SmolLM2-135M-Instruct", dataset="owner/chats")
    job.wait()
    print(client.serve(job).chat("Hello"))

Importing it imports little: the names are loaded when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hone.client import Client as Client
    from hone.engine import Model as Model
    from hone.errors import ClientError as ClientError
    from hone.errors import HoneError as HoneError
    from hone.errors import InvalidSpecError as InvalidSpecError
    from hone.errors import JobFailedError as JobFailedError
    from hone.jobs import FineTuneJob as FineTuneJob
    from hone.progress import Progress as Progress
    from hone.reports import Report as Report
    from hone.services import InferenceService as InferenceService

_MODULES = {
    "Client": "hone.client",
    "ClientError": "hone.errors",
    "FineTuneJob": "hone.jobs",
    "HoneError": "hone.errors",
    "InferenceService": "hone.services",
    "InvalidSpecError": "hone.errors",
    "JobFailedError": "hone.errors",
    "Model": "hone.engine",
    "Progress": "hone.progress",
    "Report": "hone.reports",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'hone' has no attribute {name!r}")
