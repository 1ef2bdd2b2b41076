"""Verify an engine's artifacts before it starts, and link what it is to load. Does not import torch.

`python -m hone_server.adapter_sidecar.link_artifacts` runs in an init container. Engines other than Hone's don't read
manifests. So this reads every file of the artifacts once, in parallel, compares it with its digest, and checks the
adapters' configurations. It leaves links, `model…` and `adapters/NAME…`, and the modules `hone_gate`, `hone_vllm` and
`hone_gpucheck`.
"""

import argparse
import shutil
import sys
from pathlib import Path

from hone_api import gpucheck, layout
from hone_api.containers import LINKS_PROGRAM, VLLM_CHECK, VLLM_MIDDLEWARE, format_failure_line
from hone_api.io.command_line import parse_pair
from hone_api.io.terminal import print_line
from hone_api.reasons import HoneError

from hone_server.artifacts.verify import require_loadable_kind, verify_adapter, verify_model
from hone_server.vllm import check
from hone_server.vllm import middleware as vllm_middleware


def main(argv: list[str] | None = None) -> int:
    """Verify and link; return the exit code. The last line on stderr names the reason, as the engine's does."""
    arguments = _parse_arguments(argv)
    try:
        _link_artifacts(arguments)
    except HoneError as error:
        print_line(format_failure_line(LINKS_PROGRAM, error))
        return error.reason.exit_code or 1
    return 0


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hone_server.adapter_sidecar.link_artifacts", description="Prove artifacts, and link them."
    )
    parser.add_argument("--into", type=Path, required=True, help="folder for the links")
    parser.add_argument("--model", type=Path, help="artifact tree, or folder with config.json")
    parser.add_argument("--expect-model", metavar="DIGEST", help="digest that the model's manifest must have")
    parser.add_argument("--base", help="hub name of the base model that is served")
    parser.add_argument("--base-revision", metavar="COMMIT")
    parser.add_argument("--adapter", metavar="NAME=DIR", type=parse_pair, action="append", default=[])
    parser.add_argument("--expect", metavar="NAME=DIGEST", type=parse_pair, action="append", default=[])
    parser.add_argument("--max-rank", type=int, help="largest rank that the engine was started for")
    return parser.parse_args(argv)


def _link_artifacts(arguments: argparse.Namespace) -> None:
    into: Path = arguments.into
    install_vllm_modules(into)
    expected: dict[str, str] = dict(arguments.expect)
    if arguments.model:
        folder = verify_model(arguments.model, arguments.expect_model)
        make_link(into / layout.make_link_name(layout.MODEL_LINK, arguments.expect_model), folder)
    for name, path in arguments.adapter:
        digest = expected.get(name)
        folder, _ = verify_adapter(name, Path(path), digest, arguments.base, arguments.base_revision)
        require_loadable_kind(name, folder, arguments.max_rank)
        make_link(into / layout.ADAPTER_LINKS / layout.make_link_name(name, digest), folder)


def install_vllm_modules(into: Path) -> None:
    """Copy the modules that vLLM, and the check before its start, import into a folder that is on its PYTHONPATH."""
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(vllm_middleware.__file__, into / f"{VLLM_MIDDLEWARE}.py")
    shutil.copyfile(check.__file__, into / f"{VLLM_CHECK}.py")
    package = into / check.GPU_CHECK_MODULE
    package.mkdir(exist_ok=True)
    for file in Path(gpucheck.__file__).parent.glob("*.py"):
        shutil.copyfile(file, package / file.name)


def make_link(link: Path, folder: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)  # the container may restart in the same pod
    link.symlink_to(folder)


if __name__ == "__main__":
    sys.exit(main())
