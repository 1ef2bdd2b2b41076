"""`python -m hone_server.place`: before an engine starts, prove its artifacts and link what it is to load. No torch.

Engines other than Hone's know nothing of manifests. This reads every file of the artifacts once, in parallel, compares
it with its digest, judges the adapters' configurations, and leaves links, `model…` and `adapters/NAME…`, and the
modules `hone_gate`, `hone_vllm` and `hone_gpucheck`.
"""

import argparse
import json
import re
import shutil
import sys
import time
from pathlib import Path

from hone_api import gpucheck, layout
from hone_api.adapterconfig import ADAPTER_CONFIG, read_adapter_config
from hone_api.artifact import ArtifactManifest
from hone_api.proof import Proof, find_proof
from hone_api.reasons import ADAPTER_MISMATCH, ARTIFACT_CORRUPT, ARTIFACT_MISSING, HoneError
from hone_api.terminal import print_line

from . import gate, vllmcheck

TOLD_BY = "hone-place"
RANK_FLAG = "--max-lora-rank"
COMMIT = re.compile("[0-9a-f]{40}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; the last words on stderr name the reason, as the engine's do."""
    arguments = _parse(argv)
    try:
        _place(arguments)
    except HoneError as error:
        print_line(f"{TOLD_BY}: {error.reason.name}: {error.sentence()}")
        return error.reason.exit_code or 1
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hone_server.place", description="Prove artifacts, and link them.")
    parser.add_argument("--into", type=Path, required=True, help="folder for the links")
    parser.add_argument("--model", type=Path, help="artifact tree, or folder with config.json")
    parser.add_argument("--expect-model", metavar="DIGEST", help="digest that the model's manifest must have")
    parser.add_argument("--base", help="hub name of the base model that is served")
    parser.add_argument("--base-revision", metavar="COMMIT")
    parser.add_argument("--adapter", metavar="NAME=DIR", type=_pair, action="append", default=[])
    parser.add_argument("--expect", metavar="NAME=DIGEST", type=_pair, action="append", default=[])
    parser.add_argument("--max-rank", type=int, help="largest rank that the engine was started for")
    return parser.parse_args(argv)


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _place(arguments: argparse.Namespace) -> None:
    into: Path = arguments.into
    put_modules(into)
    expected: dict[str, str] = dict(arguments.expect)
    if arguments.model:
        folder = _model(arguments.model, arguments.expect_model)
        make_link(into / layout.link_name("model", arguments.expect_model), folder)
    for name, path in arguments.adapter:
        digest = expected.get(name)
        folder, _ = proved_adapter(name, Path(path), digest, arguments.base, arguments.base_revision)
        check_kind(name, folder, arguments.max_rank)
        make_link(into / "adapters" / layout.link_name(name, digest), folder)


def proved_adapter(
    name: str, root: Path, digest: str | None, base: str | None, revision: str | None
) -> tuple[Path, str | None]:
    """The folder with adapter_config.json, every file as the manifest says, and its digest. Raises HoneError."""
    folder, manifest = _adapter(name, root, digest)
    if manifest is None:
        return folder, None
    check_base(name, manifest, base, revision)
    return folder, manifest.digest


def put_modules(into: Path) -> None:
    """Copy what vLLM and the check before it import into a folder that is on its PYTHONPATH."""
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(gate.__file__, into / "hone_gate.py")
    shutil.copyfile(vllmcheck.__file__, into / "hone_vllm.py")
    package = into / vllmcheck.GPU_CHECK
    package.mkdir(exist_ok=True)
    for file in Path(gpucheck.__file__).parent.glob("*.py"):
        shutil.copyfile(file, package / file.name)


def make_link(link: Path, folder: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)  # the container may start anew in the same pod
    link.symlink_to(folder)


def _model(root: Path, digest: str | None) -> Path:
    proof = _proved(root, digest)
    if proof is None:
        if (root / "config.json").is_file():
            return root
        remedy = "Check spec.model; of a FineTuneJob's adapter, that the base model is still in the cache."
        raise HoneError(ARTIFACT_MISSING, f"{root} has neither {layout.MANIFEST} nor config.json", remedy=remedy)
    if proof.model_folder is None:
        remedy = "Name its base in spec.model, and it in spec.adapters."
        raise HoneError(ARTIFACT_MISSING, f"{root} holds an adapter, and no model", remedy=remedy)
    return proof.model_folder


def _adapter(name: str, root: Path, digest: str | None) -> tuple[Path, ArtifactManifest | None]:
    proof = _proved(root, digest)
    if proof is None:
        if (root / ADAPTER_CONFIG).is_file():
            return root, None
        message = f"Adapter {name}: {root} has neither {layout.MANIFEST} nor {ADAPTER_CONFIG}"
        raise HoneError(ARTIFACT_MISSING, message)
    if not proof.has_adapter:
        raise HoneError(ADAPTER_MISMATCH, f"Adapter {name}: {root} holds a {proof.manifest.kind}, not an adapter")
    return proof.root / layout.ADAPTER, proof.manifest


def _proved(root: Path, digest: str | None) -> Proof | None:
    """The artifact, after its files were compared with the manifest; None where there is none, and none has to be."""
    proof = find_proof(root)
    if proof is None:
        if digest:
            raise HoneError(ARTIFACT_MISSING, f"{root} should have digest {digest}, and no {layout.MANIFEST} is there")
        return None
    manifest = proof.manifest
    if digest and manifest.digest != digest:
        raise HoneError(ARTIFACT_CORRUPT, f"{root} should have digest {digest}, and its manifest has {manifest.digest}")
    begin = time.monotonic()
    proof.check()
    size = sum(file.size for path, file in manifest.files.items() if path.startswith(proof.part))
    seconds = time.monotonic() - begin
    print_line(f"{TOLD_BY}: {root} is {manifest.digest}: {size} bytes read in {seconds:.2f} s")
    return proof


def check_base(name: str, manifest: ArtifactManifest, base: str | None, revision: str | None) -> None:
    """Raises HoneError with both sides when the adapter was trained on another hub model, or commit, than is served.

    Of a base model on a claim no more is known than where it was, which may be elsewhere here.
    """
    trained = manifest.base_model
    if base and trained.name and trained.name != base:
        message = f"Adapter {name} was trained on {trained.name}, and the service's model is {base}"
        raise HoneError(ADAPTER_MISMATCH, message)
    is_known = trained.revision and COMMIT.fullmatch(revision or "")  # which commit a branch is, only the hub knows
    if base and trained.name and is_known and trained.revision != revision:
        message = f"Adapter {name} was trained on {base} at {trained.revision}, and {revision} is served"
        raise HoneError(ADAPTER_MISMATCH, message)


def check_kind(name: str, folder: Path, largest: int | None) -> None:
    """What vLLM, SGLang and TGI refuse, said before they are started."""
    config = read_adapter_config(folder)
    wrong = {
        "peft_type": config.peft_type != "LORA",
        "use_dora": bool(config.use_dora),
        "modules_to_save": bool(config.modules_to_save),
        "bias": config.bias != "none",
    }
    for field in (field for field, is_wrong in wrong.items() if is_wrong):
        found = json.dumps(getattr(config, field))
        remedy = "Serve the merged model, or set spec.engine: embedded."
        raise HoneError(
            ADAPTER_MISMATCH, f"Adapter {name} has {field} {found}, which the engine refuses", remedy=remedy
        )
    rank = config.largest_rank
    if largest and rank > largest:
        message = f"Adapter {name} has rank {rank}, and the engine is started for ranks up to {largest}"
        remedy = f"Add {RANK_FLAG} and a rank that the engine takes to spec.extraArgs, or serve the merged model."
        raise HoneError(ADAPTER_MISMATCH, message, remedy=remedy)


if __name__ == "__main__":
    sys.exit(main())
