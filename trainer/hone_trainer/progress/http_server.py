"""HTTP server of the trainer: GET /progress (JSON), /metrics (Prometheus), /healthz."""

import json
from typing import Any

from hone_api.io.listening import open_listener
from hone_api.io.status_server import Answer, StatusServer
from hone_api.reasons import INVALID_SPEC, HoneError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hone_trainer.progress.state import ProgressState

_GAUGES = {
    "step": "Optimizer steps done",
    "total_steps": "Optimizer steps in all",
    "epoch": "Epochs done",
    "loss": "Training loss at the last log",
    "grad_norm": "Gradient norm at the last log",
    "learning_rate": "Learning rate at the last log",
    "tokens_per_second": "Trained tokens a second",
    "samples_per_second": "Rows a second",
    "eta": "Seconds left",
}


class TrainerCollector(Collector):
    """Turns the telemetry into metrics at each request, so that training spends no time on it."""

    def __init__(self, telemetry: ProgressState) -> None:
        self._telemetry = telemetry

    def collect(self) -> Any:
        for stage in ("Preparing", "Training", "Saving"):
            family = GaugeMetricFamily("hone_trainer_stage", "1 for the stage the trainer is in", labels=["stage"])
            family.add_metric([stage], float(self._telemetry.stage == stage))
            yield family
        yield CounterMetricFamily("hone_trainer_tokens", "Trained tokens", value=self._telemetry.tokens)
        for field, text in _GAUGES.items():
            value = getattr(self._telemetry.progress, field, None)
            if value is not None:
                name = "eta_seconds" if field == "eta" else field
                yield GaugeMetricFamily(f"hone_trainer_{name}", text, value=value)


def serve_progress(telemetry: ProgressState, port: int, host: str = "") -> StatusServer:
    """Serve on a port, in a thread that ends with the process. Raises HoneError when the port is taken."""
    registry = CollectorRegistry()
    registry.register(TrainerCollector(telemetry))

    def answer(path: str) -> Answer:
        if path == "/progress":
            report = telemetry.make_report().model_dump_json(by_alias=True, exclude_none=True)
            return Answer(200, "application/json", report.encode())
        if path == "/metrics":
            return Answer(200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry))
        if path == "/healthz":
            return Answer(200, body=b"ok\n")
        return Answer(404, "application/json", json.dumps({"error": f"no {path} here"}).encode())

    try:
        listener = open_listener(host, port)
    except OSError as error:
        raise HoneError(
            INVALID_SPEC, f"--port is {port}, which can't be listened on: {error.strerror}", remedy="Choose another."
        ) from None
    return StatusServer(listener, answer)
