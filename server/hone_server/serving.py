"""The life of the server's process: HTTP first, the models behind it, an orderly end."""

import asyncio
import logging
from dataclasses import dataclass, field

import torch
import uvicorn
from hone_api.reasons import HoneError

from .access import Access
from .api import make_app
from .service import Service
from .sources import Sources

log = logging.getLogger("hone_server")


@dataclass(frozen=True)
class Options:
    """How to serve. `max_waiting`: answers of one model that may wait, before a request gets 429."""

    host: str
    port: int
    max_model_len: int | None
    max_waiting: int
    api_key: str | None = field(repr=False)


def serve(sources: Sources, options: Options) -> HoneError | None:
    """Serves until SIGTERM or SIGINT, then finishes the requests that run. Returns what kept it from serving, or None.

    HTTP answers, 503 on /health, while the models load.
    """
    service = Service(sources, options.max_model_len)
    app = Access(make_app(service, options.max_waiting), options.api_key)
    server = uvicorn.Server(
        uvicorn.Config(app, host=options.host, port=options.port, log_level="warning", access_log=False)
    )
    log.info("starting on %s:%d with %d threads", options.host, options.port, torch.get_num_threads())
    asyncio.run(_run(server, service))
    return service.failure


async def _run(server: uvicorn.Server, service: Service) -> None:
    def loaded(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            server.should_exit = True

    loading = asyncio.create_task(service.load())
    loading.add_done_callback(loaded)
    try:
        await server.serve()
    except SystemExit as end:
        # After its orderly end uvicorn raises the signal anew, which meets main's handler; a code is a failed start.
        if end.code:
            raise
    finally:
        loading.cancel()
        service.stop()
