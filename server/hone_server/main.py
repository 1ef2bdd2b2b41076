"""The `hone-server` command: read the arguments, set up the process, and serve.

In: the command line and environment. artifacts/sources.py finds the models, and http/server.py serves them. The imports
of torch come late, after the environment is set, and after errors that need no torch.
"""

import argparse
import logging
import os
import signal
import string
import sys
from pathlib import Path
from typing import NoReturn

from hone_api.containers import SERVER_PROGRAM, format_failure_line
from hone_api.io.command_line import parse_pair
from hone_api.io.terminal import make_output_safe, print_line
from hone_api.layout import API_KEY_ENV, ENGINE_PORT
from hone_api.reasons import INVALID_SPEC, HoneError
from hone_api.requiredgpus import require_gpus

from hone_server.artifacts.sources import find_model_sources
from hone_server.hardware import count_cpu_threads
from hone_server.http.cors import ANY_ORIGIN, parse_origins
from hone_server.logs import configure_logging
from hone_server.structured.tool_formats import TOOL_CALL_FORMATS

ALLOWED_ORIGINS_ENV = "HONE_ALLOWED_ORIGINS"
MAX_WAITING = 256
# For how many shapes of products oneDNN, and torch above it, keep the compiled program; each takes 1 to 2 MB.
#
# oneDNN computes bfloat16 on CPUs, and every length of a prompt has its own shapes. With 1,024 kept programs, the
# default, 400 prompts of different lengths increased the memory of an engine of SmolLM2-135M by 900 MB. With 32 it
# answers 32 clients, and 8 adapters, as fast.
CACHED_PRODUCTS = 32


def main(argv: list[str] | None = None) -> NoReturn:
    """Serve until SIGTERM, then finish running requests and exit with 0. A failure exits with its reason's code."""
    # First of all: process 1 of a container ignores SIGTERM without a handler, and the imports take seconds.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    args = _parse_arguments(argv)
    make_output_safe(is_stdout_a_log=True)
    configure_logging()
    logging.getLogger("hone_server").setLevel(logging.INFO)
    try:
        sources = find_model_sources(
            args.model,
            name=args.name,
            adapters={name: Path(folder) for name, folder in args.adapter},
            expected=dict(args.expect),
            claims={name: Path(folder) for name, folder in args.claim},
            revision=args.revision,
        )
        api_key = _read_api_key(args.api_key_file)
        chat_template = _read_chat_template(args.chat_template)
        require_gpus(os.environ)
    except HoneError as error:
        _exit_with_failure(error)
    if sources.cache_folder is not None and not os.environ.keys() & {"HF_HOME", "HF_HUB_CACHE"}:
        # The artifact's own cache has the base model: nothing is to be downloaded. HF_HOME would also bring a token.
        os.environ |= {"HF_HUB_CACHE": str(sources.cache_folder / "hub"), "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("OMP_NUM_THREADS", str(count_cpu_threads()))
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(CACHED_PRODUCTS))
    from hone_server.http.server import ServerOptions, serve

    options = ServerOptions(
        args.host,
        args.port,
        args.max_model_len,
        args.max_waiting,
        args.drain_seconds,
        api_key,
        args.admin_token_file,
        args.allowed_origins,
        chat_template,
        args.tool_call_parser,
    )
    failure = serve(sources, options)
    if failure is not None:
        _exit_with_failure(failure)
    _exit_at_once(0)


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hone-server", description="Serve a model behind an OpenAI-compatible API.")
    _add_model_options(parser)
    _add_server_options(parser)
    return parser.parse_args(argv)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide which models are served, and how they read and write text."""
    parser.add_argument("model", metavar="MODEL", help="artifact tree, model folder, or hub name")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub (default: main)")
    parser.add_argument("--name", help="what the model is called (default: the FineTuneJob, folder or hub name)")
    parser.add_argument(
        "--adapter", metavar="NAME=DIR", type=parse_pair, action="append", default=[], help="serve it, too"
    )
    parser.add_argument(
        "--expect",
        metavar="NAME=DIGEST",
        type=parse_pair,
        action="append",
        default=[],
        help="digest that it must have",
    )
    parser.add_argument(
        "--claim", metavar="NAME=DIR", type=parse_pair, action="append", default=[], help="where a claim is mounted"
    )
    parser.add_argument("--max-model-len", type=_parse_positive, metavar="TOKENS", help="longest prompt plus answer")
    parser.add_argument(
        "--chat-template", metavar="FILE|TEXT", help="in Jinja, for all models (default: what each model has)"
    )
    parser.add_argument(
        "--tool-call-parser",
        choices=sorted(TOOL_CALL_FORMATS),
        help="how models write tool calls (default: as in their chat templates)",
    )


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server: where it listens, who may call it, and how much it accepts."""
    parser.add_argument("--host", default="", help="listen on this address alone (default: all, IPv4 and IPv6)")
    parser.add_argument("--port", type=int, default=ENGINE_PORT)
    parser.add_argument(
        "--max-waiting",
        type=_parse_positive,
        default=MAX_WAITING,
        metavar="ANSWERS",
        help=f"answers of a model that may wait for a place; further requests get 429 (default: {MAX_WAITING})",
    )
    parser.add_argument(
        "--drain-seconds",
        type=_parse_count,
        default=0,
        metavar="SECONDS",
        help="how long after SIGTERM connections are accepted at least (default: 0)",
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"holds the key that clients must send (or: {API_KEY_ENV})"
    )
    parser.add_argument(
        "--admin-token-file",
        type=Path,
        metavar="FILE",
        help="turns on loading and unloading adapters, for who sends what the file holds",
    )
    parser.add_argument(
        "--allowed-origins",
        type=_parse_origins,
        default=os.environ.get(ALLOWED_ORIGINS_ENV, ANY_ORIGIN),
        metavar="JSON",
        help="origins of web pages that may call the API from a browser, as a JSON list "
        f"(or: {ALLOWED_ORIGINS_ENV}; default: '{ANY_ORIGIN}', any)",
    )


def _read_api_key(file: Path | None) -> str | None:
    """Return the key that clients must send, from the file or else from the environment; None: there is none.

    Raises HoneError InvalidSpec.
    """
    try:
        key = os.environ.get(API_KEY_ENV) if file is None else file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HoneError(INVALID_SPEC, f"--api-key-file {file}: can't be read: {error}") from None
    if key is None:
        return None
    key = key.strip(string.whitespace)  # as for bytes: other characters that count as spaces belong to the key
    if not key:
        raise HoneError(INVALID_SPEC, f"{file or API_KEY_ENV} holds an empty API key", remedy="Write the key into it.")
    return key


def _read_chat_template(given: str | None) -> str | None:
    """Return the template, which is given directly or as a file, as in vLLM. Raises HoneError InvalidSpec."""
    if given is None or "{" in given:
        return given
    try:
        return Path(given).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"--chat-template {given}: can't be read, and is no Jinja template: {error}"
        raise HoneError(INVALID_SPEC, message, remedy="Give a file, or the template itself.") from None


def _parse_origins(text: str) -> list[str]:
    try:
        return parse_origins(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parse_count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _parse_positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _exit_with_failure(error: HoneError) -> NoReturn:
    print_line(format_failure_line(SERVER_PROGRAM, error))
    _exit_at_once(error.reason.exit_code or 1)


def _exit_at_once(code: int) -> NoReturn:
    """Exit without the interpreter's clean-up, which would wait for a model that is still being loaded."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
