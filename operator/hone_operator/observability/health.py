"""Serve /healthz, /readyz and /metrics, on a small HTTP server of their own."""

from collections.abc import Callable

from hone_api.io.listening import open_listener, split_address
from hone_api.io.status_server import Answer, LoopServer
from prometheus_client import CONTENT_TYPE_LATEST

from hone_operator.observability.metrics import Metrics

# One pass makes several requests, and each of them can last until its time limit.
STUCK_SECONDS = 300.0


def explain_stuck(longest_pass: float, longest_wait: float, since_last_finished: float) -> str | None:
    """Return why passes don't end, from three durations in seconds; None when they do, or nothing waits."""
    if longest_pass > STUCK_SECONDS:
        return f"a pass over one object has lasted {longest_pass:.0f} s"
    if longest_wait > STUCK_SECONDS and since_last_finished > STUCK_SECONDS:
        return (
            f"an object has waited {longest_wait:.0f} s for a pass, and none has ended for {since_last_finished:.0f} s"
        )
    return None


async def serve_status(
    address: str,
    metrics: Metrics,
    sick: Callable[[], str | None],
    unready: Callable[[], str | None],
    remark: Callable[[], str | None],
) -> LoopServer:
    """Listen on HOST:PORT until the server is closed. `sick` and `unready` return a reason, or None.

    `remark` returns what a ready operator can't do; /readyz reports it. The server runs in the operator's own event
    loop, so that a blocked operator does not answer that it is well.
    """

    def probe(why: str | None, also: str | None = None) -> Answer:
        return Answer(503 if why else 200, body=f"{why or 'ok'}{f'; {also}' if also else ''}\n".encode())

    def answer(path: str) -> Answer:
        match path:
            case "/healthz":
                return probe(sick())
            case "/readyz":
                return probe(unready(), remark())
            case "/metrics":
                return Answer(200, CONTENT_TYPE_LATEST, metrics.render_exposition())
        return Answer(404, body=b"there are /healthz, /readyz and /metrics\n")

    server = LoopServer(answer)
    await server.start(open_listener(*split_address(address)))
    return server
