"""Download the model of a service from the hub before its engine starts. Does not import torch.

`python -m hone_trainer.inputs.model_download NAME --link PATH` runs in an init container, the only one with the hub
token. In: the model's name and revision, and the cache, which HF_HOME names. Out: the files in the cache, for later
starts and other pods, and a link to the folder of the commit. The engine loads the link without the hub, so that it
gets this commit even if another pod moves the branch in a shared cache meanwhile.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

from hone_api.byte_sizes import format_bytes
from hone_api.containers import DOWNLOAD_PROGRAM
from hone_api.io.terminal import print_line
from hone_api.reasons import MODEL_INVALID, HoneError
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars
from safetensors import SafetensorError, safe_open

from hone_trainer.inputs import hub
from hone_trainer.inputs.download_program import run_download
from hone_trainer.inputs.weight_index import NAMES, find_weight_files


def main(argv: list[str] | None = None) -> int:
    """Download and link; return the exit code."""
    arguments = _parse_arguments(argv)
    logging.basicConfig(format=f"{DOWNLOAD_PROGRAM}: %(message)s")
    logging.getLogger("huggingface_hub").setLevel(logging.INFO)  # it reports for which lock of a shared cache it waits
    disable_progress_bars()
    return run_download(lambda: _download(arguments.model, arguments.revision, arguments.link))


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hone_trainer.inputs.model_download", description="Download a model from the hub, and link it."
    )
    parser.add_argument("model", help="name on the hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    parser.add_argument("--link", type=Path, required=True, help="becomes a link to the model's folder in the cache")
    return parser.parse_args(argv)


def _download(name: str, revision: str, link: Path) -> None:
    """Download what the cache lacks, and link it.

    Raises HoneError ModelNotFound, ModelInvalid, HubUnauthorized, HubUnreachable, DiskFull, VolumeAccessDenied.
    """
    commit = hub.resolve_commit("model", name, revision)
    if hub.is_offline():
        print_line(f"{DOWNLOAD_PROGRAM}: {name} at {commit} is taken from the cache: the hub can't be reached")
    else:
        print_line(f"{DOWNLOAD_PROGRAM}: {name} at {commit}: downloading what {constants.HF_HUB_CACHE} lacks of it")
    begin = time.monotonic()
    folder = hub.download_model(name, commit, revision)
    check_weights(folder, f"spec.model.name is {name}")
    link.unlink(missing_ok=True)  # the container may restart in the same pod
    link.symlink_to(folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    print_line(f"{DOWNLOAD_PROGRAM}: {folder} holds {format_bytes(size)}, complete in {time.monotonic() - begin:.1f} s")


def check_weights(folder: Path, what: str) -> None:
    """Raise HoneError ModelInvalid for a model that lacks files of its weights, or has one that was cut."""
    if any((folder / name).is_file() for name in NAMES):
        files = find_weight_files(folder, what)
    else:
        files = [path for pattern in hub.WEIGHTS for path in folder.glob(pattern)]
    if not files:
        raise HoneError(MODEL_INVALID, f"{what}, and there are no weights: no file {' or '.join(hub.WEIGHTS)}")
    for path in files:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="np"):
                    pass
            except SafetensorError as error:
                message = f"{what}, whose {path.name} in the cache is damaged: {error}"
                remedy = f"Remove {path.resolve()} and {path} from the cache: the next start downloads it again."
                raise HoneError(MODEL_INVALID, message, remedy=remedy) from error


if __name__ == "__main__":
    sys.exit(main())
