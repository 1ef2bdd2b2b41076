"""Download the models and adapters of a service from their URIs before its engine starts. Does not import torch.

`python -m hone_trainer.models.uri_download --download JSON` runs in an init container, the only one with the Secrets of
the sources. In: for each source its fields, the field of the spec, and the path of a link. Out: the files in the cache,
which HF_HOME names, for later starts and other pods, and the links to their folders. Of an artifact of Hone, the folder
with the model or adapter is linked, next to its manifest, with which the engine's pod compares every file.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from hone_api.artifacts.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hone_api.artifacts.proof import find_proof
from hone_api.containers import DOWNLOAD_PROGRAM
from hone_api.inferenceservices.adapter_downloads import RequestedDownload
from hone_api.io.command_line import parse_pair
from hone_api.io.terminal import print_line
from hone_api.layout import ADAPTER, MERGED, MODEL
from hone_api.reasons import ADAPTER_MISMATCH, ARTIFACT_CORRUPT, INVALID_SPEC, MODEL_NOT_FOUND, HoneError

from hone_trainer.inputs.download_program import run_download
from hone_trainer.inputs.manifest import read_secret
from hone_trainer.inputs.model_download import check_weights
from hone_trainer.models.remote_models import choose_served_adapter, choose_served_model
from hone_trainer.remote.fetch import fetch_again
from hone_trainer.remote.locations import Location

MODEL_FIELD = "spec.model"


def main(argv: list[str] | None = None) -> int:
    """Download and link; return the exit code."""
    arguments = _parse_arguments(argv)

    def download_all() -> None:
        for download in arguments.download:
            begin = time.monotonic()
            folder = download_source(download, dict(arguments.secret), dict(arguments.config_map))
            make_link(download, folder, time.monotonic() - begin)

    return run_download(download_all)


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hone_trainer.models.uri_download", description="Download models and adapters, and link them."
    )
    parser.add_argument("--download", metavar="JSON", type=_parse_download, action="append", required=True)
    parser.add_argument("--secret", metavar="NAME=DIR", type=parse_pair, action="append", default=[])
    parser.add_argument("--config-map", metavar="NAME=DIR", type=parse_pair, action="append", default=[])
    return parser.parse_args(argv)


def _parse_download(text: str) -> RequestedDownload:
    return RequestedDownload.model_validate(json.loads(text))


def download_source(download: RequestedDownload, secrets: dict[str, str], config_maps: dict[str, str]) -> Path:
    """Download what the cache lacks of a source, and return the folder to link.

    secrets, config_maps: the folders where they are mounted, by name.
    Raises HoneError ModelNotFound, ModelInvalid, ArtifactCorrupt, AdapterMismatch, and what `remote.fetch` raises.
    """
    location = _locate(download, secrets, config_maps)
    is_model = download.field == MODEL_FIELD
    downloaded = fetch_again(location, choose_served_model if is_model else choose_served_adapter).folder
    folder = _find_model(downloaded, location) if is_model else _find_adapter(downloaded, location)
    _check_digest(folder, location, download.source.digest)
    return folder


def make_link(download: RequestedDownload, folder: Path, seconds: float) -> None:
    """Link the folder of a download that took so long."""
    download.link.parent.mkdir(parents=True, exist_ok=True)
    download.link.unlink(missing_ok=True)  # the container may restart in the same pod
    download.link.symlink_to(folder)
    print_line(f"{DOWNLOAD_PROGRAM}: {download.source.uri} is in {folder}, after {seconds:.1f} s")


def _locate(download: RequestedDownload, secrets: dict[str, str], config_maps: dict[str, str]) -> Location:
    source = download.source
    certificates = None
    if source.ca_bundle:
        reference = source.ca_bundle.config_map
        certificates = Path(config_maps[reference.name]) / reference.key
        if not certificates.is_file():
            found = (
                f"{download.field}.caBundle.configMap.key is {reference.key}, and ConfigMap {reference.name} lacks it"
            )
            raise HoneError(INVALID_SPEC, found)
    return Location(
        "model",
        str(source.uri),
        source.endpoint,
        source.region,
        read_secret(Path(secrets[source.secret.name])) if source.secret else None,
        certificates,
        download.field,
    )


def _find_model(folder: Path, location: Location) -> Path:
    """Return the folder with the model in a download. Raises HoneError ModelNotFound, ModelInvalid, AdapterMismatch."""
    found = next((folder / part for part in (MERGED, MODEL) if (folder / part / "config.json").is_file()), folder)
    if (found / "config.json").is_file():
        check_weights(found, location.where)
        return found
    if (found / ADAPTER_CONFIG).is_file():
        remedy = "Name its base in spec.model, and it in spec.adapters."
        raise HoneError(ADAPTER_MISMATCH, f"{location.where}, which holds an adapter, and no model", remedy=remedy)
    raise HoneError(MODEL_NOT_FOUND, f"{location.where}, and there is no config.json")


def _find_adapter(folder: Path, location: Location) -> Path:
    """Return the folder with the adapter in a download. Raises HoneError AdapterMismatch."""
    found = folder / ADAPTER if (folder / ADAPTER / ADAPTER_CONFIG).is_file() else folder
    if not (found / ADAPTER_CONFIG).is_file() or not any((found / name).is_file() for name in ADAPTER_WEIGHTS):
        what = f"{ADAPTER_CONFIG} with {' or '.join(ADAPTER_WEIGHTS)}"
        raise HoneError(ADAPTER_MISMATCH, f"{location.where}, which holds no adapter: there is no {what}")
    return found


def _check_digest(folder: Path, location: Location, expected: str | None) -> None:
    """Raise HoneError ArtifactCorrupt for another digest than the spec has. The engine's pod compares the files."""
    proof = find_proof(folder)
    digest = proof.manifest.digest if proof else None
    if expected and digest != expected:
        found = f"its manifest.json has {digest}" if digest else "it has no manifest.json"
        field = location.spec_field
        raise HoneError(
            ARTIFACT_CORRUPT,
            f"{location.where} with digest {expected}, and {found}",
            remedy=f"Correct {field}.digest, or name the artifact that has this digest in {field}.uri.",
        )


if __name__ == "__main__":
    sys.exit(main())
