"""/healthz, /readyz and /metrics, on a small server of their own."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from hone_api.listening import open_listener, split_address
from prometheus_client import CONTENT_TYPE_LATEST

from hone_operator.metrics import Metrics

STUCK_SECONDS = 300.0
"""Several requests of one pass may each take as long as a request may."""

Handler = Callable[[web.Request], Awaitable[web.Response]]


def why_stuck(longest_pass: float, longest_wait: float, since_last_finished: float) -> str | None:
    """Why the passes don't go on, from how long things last in seconds; None when they do, or nothing is to be done."""
    if longest_pass > STUCK_SECONDS:
        return f"a pass over one object has lasted {longest_pass:.0f} s"
    if longest_wait > STUCK_SECONDS and since_last_finished > STUCK_SECONDS:
        return (
            f"an object has waited {longest_wait:.0f} s for a pass, and none has ended for {since_last_finished:.0f} s"
        )
    return None


async def serve(
    address: str,
    metrics: Metrics,
    sick: Callable[[], str | None],
    unready: Callable[[], str | None],
    remark: Callable[[], str | None],
) -> web.AppRunner:
    """Listen on HOST:PORT until the runner's clean-up. `sick` and `unready` say why, or None.

    `remark` is added to the answer of a ready operator: what it can't do.
    """

    def probe(why_not: Callable[[], str | None]) -> Handler:
        async def answer(_: web.Request) -> web.Response:
            why = why_not()
            also = remark() if why_not is unready else None
            return web.Response(status=503 if why else 200, text=f"{why or 'ok'}{f'; {also}' if also else ''}\n")

        return answer

    async def expose(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.router.add_get("/healthz", probe(sick))
    application.router.add_get("/readyz", probe(unready))
    application.router.add_get("/metrics", expose)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.SockSite(runner, open_listener(*split_address(address))).start()
    return runner
