"""`python -m hone_server.adapter_sidecar.main`: keep an engine's adapters as the operator's file lists them.

In: the file, which the operator changes at run time. Out: calls of the engine's API for adapters, and, over HTTP,
/started, /ready and the report /adapters, which the operator reads. reconciler.py does the work. Does not import torch.
"""

import argparse
import logging
import os
import secrets
import signal
import sys
import time
from pathlib import Path

from hone_api.io.listening import open_listener
from hone_api.io.status_server import Answer, StatusServer
from hone_api.io.terminal import make_output_safe
from hone_api.layout import (
    ADAPTER_LINKS,
    ADAPTER_SIDECAR_PORT,
    ADMIN_TOKEN,
    ENGINE_PORT,
    POD_ADAPTERS,
    POD_DOWNLOAD_FAILURES,
    POD_SERVED,
    SIDECAR_READY_PATH,
    SIDECAR_REPORT_PATH,
    SIDECAR_STARTED_PATH,
)

from hone_server.adapter_sidecar.engine_client import EngineClient
from hone_server.adapter_sidecar.link_artifacts import install_vllm_modules
from hone_server.adapter_sidecar.reconciler import AdapterReconciler

TICK_SECONDS = 0.25


def main(argv: list[str] | None = None) -> None:
    """Run until SIGTERM, which ends the process at once: it holds no state that could be lost."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    arguments = _parse_arguments(argv)
    make_output_safe(is_stdout_a_log=True)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, level=logging.INFO)
    served: Path = arguments.served
    engine = EngineClient(arguments.engine_port, _prepare_folder(served), arguments.api_key_file)
    reconciler = AdapterReconciler(
        arguments.file,
        served / ADAPTER_LINKS,
        engine,
        arguments.max_rank,
        download_failures=arguments.download_failures,
    )
    StatusServer(open_listener("", arguments.port), lambda path: _answer_request(reconciler, path))
    while True:
        reconciler.reconcile()
        time.sleep(TICK_SECONDS)


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hone_server.adapter_sidecar.main", description="Keep an engine's adapters."
    )
    parser.add_argument("--file", type=Path, default=Path(POD_ADAPTERS), help="the adapters that there should be")
    parser.add_argument("--served", type=Path, default=Path(POD_SERVED), help="folder for links and the token")
    parser.add_argument("--max-rank", type=int, help="largest that the engine takes (default: any kind of adapter)")
    parser.add_argument("--api-key-file", type=Path, help="holds the key that clients must send")
    parser.add_argument(
        "--download-failures", type=Path, default=Path(POD_DOWNLOAD_FAILURES), help="why adapters are not downloaded"
    )
    parser.add_argument("--engine-port", type=int, default=ENGINE_PORT)
    parser.add_argument("--port", type=int, default=ADAPTER_SIDECAR_PORT)
    return parser.parse_args(argv)


def _prepare_folder(served: Path) -> str:
    """Copy the middleware, and return the admin token; create it unless an earlier process of this pod did."""
    install_vllm_modules(served)
    token = served / ADMIN_TOKEN
    if not token.exists():
        part = token.with_suffix(".part")
        part.touch(0o600)
        part.write_text(secrets.token_hex(32))
        part.rename(token)
    return token.read_text()


def _answer_request(reconciler: AdapterReconciler, path: str) -> Answer:
    if path == SIDECAR_STARTED_PATH:
        return Answer(200 if reconciler.has_started else 503)
    if path == SIDECAR_READY_PATH:
        waits_for = reconciler.missing_adapters
        return Answer(503, body=f"waits for {', '.join(waits_for)}".encode()) if waits_for else Answer(200)
    if path == SIDECAR_REPORT_PATH:
        return Answer(200, "application/json", reconciler.make_report().model_dump_json(by_alias=True).encode())
    return Answer(404)


if __name__ == "__main__":
    main()
