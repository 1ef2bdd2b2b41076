"""`python3 -m hone_vllm ARGUMENTS`: check the arguments of `vllm serve` with vLLM's own code, before it loads weights.

An init container of vLLM's own image runs it, as the module `hone_vllm`, so it imports nothing of Hone's. The installed
vLLM reads the model's configuration and judges quantization, architecture, context and adapters by its own code, so
Hone needs no list that follows vLLM's versions. The operator shows the last line on stderr. Checks that some version
does not offer are left to vLLM's own start. Before these, the package `hone_gpucheck` next to it checks the pod's GPUs.
"""

import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

log = logging.getLogger("hone_vllm")

KEY_FILE_ENV = "HONE_API_KEY_FILE"
GPU_CHECK_MODULE = "hone_gpucheck"
# The links that the earlier containers have made.
ADAPTERS_FOLDER = Path(__file__).with_name("adapters")
PARSER_MODULES = ("vllm.utils.argparse_utils", "vllm.utils")
# Modules in which versions of vLLM define the parser of `vllm serve`.
ARGUMENT_MODULES = ("vllm.entrypoints.openai.cli_args", "vllm.entrypoints.launchers.cli_args")
# Names of the output head in transformers' models.
OUTPUT_HEADS = frozenset({"lm_head", "embed_out", "output_layer"})
MAX_MESSAGE_CHARACTERS = 300


class StartRefusedError(Exception):
    """A problem that keeps vLLM from starting; `reason` is one of Hone's reasons."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def main(arguments: list[str]) -> None:
    """Return if vLLM accepts its arguments or can't check them; else exit with the reason as the last line."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        check_key()
        check_gpus()
        check_arguments(arguments)
    except StartRefusedError as refusal:
        sys.exit(f"hone-check: {refusal.reason}: {refusal}")


def check_key() -> None:
    """Raise StartRefusedError if the key that clients must send is empty."""
    path = os.environ.get(KEY_FILE_ENV)
    if path is not None and not Path(path).read_bytes().strip():
        message = "the Secret of spec.apiKeySecret holds an empty key"
        raise StartRefusedError("InvalidSpec", f"{message}. Write a key into it, and delete the pod")


def check_gpus() -> None:
    """Raise StartRefusedError if the pod can't use the GPUs that it requests."""
    try:
        find_problem = importlib.import_module(GPU_CHECK_MODULE).find_problem
    except ImportError as error:
        log.warning("The GPUs can't be checked before vLLM starts: %r", error)
        return
    if problem := find_problem(os.environ):
        raise StartRefusedError("GpuNotUsable", f"{problem.cause}. {problem.remedy.rstrip('. ')}")


def check_arguments(arguments: list[str]) -> None:
    """Raise StartRefusedError with the message of the installed vLLM."""
    try:
        vllm = importlib.import_module("vllm")
        name = f"vLLM {vllm.__version__}"
        parser = _import_first("make_arg_parser", ARGUMENT_MODULES)(
            _import_first("FlexibleArgumentParser", PARSER_MODULES)()
        )
        options = parser.parse_args(arguments)
        options.model = getattr(options, "model_tag", None) or options.model
        engine = _import_first("AsyncEngineArgs", ("vllm.engine.arg_utils",)).from_cli_args(options)
    except (ImportError, AttributeError, TypeError, SystemExit) as error:
        log.warning("vLLM can't be asked before it starts: %r", error)
        return
    try:
        config = engine.create_model_config()
    except (ValueError, NotImplementedError) as error:  # pydantic's errors are ValueErrors
        remedy = (
            "Name another model or another quantization of it, or a version of vLLM that takes it in spec.pod.image"
        )
        raise StartRefusedError(
            "ModelUnsupported", f"{name} refuses {options.model}: {summarize_error(error)}. {remedy}"
        ) from error
    log.info("%s takes %s: %s", name, options.model, getattr(config, "architectures", ""))
    if getattr(options, "enable_lora", False):
        check_adapters(name, config, int(options.max_lora_rank))


def check_adapters(name: str, config: Any, largest_rank: int) -> None:
    """Raise StartRefusedError for an adapter that this vLLM can't put on the model."""
    try:
        [architecture, *_] = config.architectures
        model: Any = _import_first(
            "get_model_cls", ("vllm.model_executor.model_loader.utils", "vllm.model_executor.model_loader")
        )(config)
        supports = _import_first(
            "supports_lora", ("vllm.model_executor.models.interfaces", "vllm.model_executor.models")
        )
        supports_adapters = bool(supports(model))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        log.warning("%s can't be asked about adapters before it starts: %r", name, error)
        return
    if not supports_adapters:
        remedy = "Serve merged models, or set spec.engine: embedded"
        raise StartRefusedError("AdapterMismatch", f"{name} serves {architecture} without adapters. {remedy}")
    adapted_embeddings = set(getattr(model, "embedding_modules", None) or ())
    for folder in sorted(ADAPTERS_FOLDER.glob("*")):
        if embeddings := sorted(list_changed_embeddings(folder) - adapted_embeddings):
            message = f"Adapter {folder.name} changes {', '.join(embeddings)}, and {name} adapts "
            message += f"{', '.join(sorted(adapted_embeddings)) or 'only linear layers'} in {architecture}"
            remedy = "Set spec.engine: embedded, or train it with output.save: merged, or without them"
            raise StartRefusedError("AdapterMismatch", f"{message}. {remedy}")
        check_adapter_config(name, folder, largest_rank)


def list_changed_embeddings(folder: Path) -> set[str]:
    """Return the names of the embeddings and of the output head that an adapter changes."""
    keys = _read_tensor_names(folder)
    found = {key.split(".lora_embedding_")[0].rpartition(".")[2] for key in keys if ".lora_embedding_" in key}
    layers = {key.split(".lora_A")[0].rpartition(".")[2] for key in keys if ".lora_A" in key}
    return found | (layers & OUTPUT_HEADS)


def check_adapter_config(name: str, folder: Path, largest_rank: int) -> None:
    """Raise StartRefusedError with vLLM's message about an adapter's configuration."""
    try:
        helper: Any = _import_first("PEFTHelper", ("vllm.lora.peft_helper",))
        options: Any = _import_first("LoRAConfig", ("vllm.config.lora", "vllm.config"))
        limits = options(max_lora_rank=largest_rank, max_loras=1)
    except (ImportError, AttributeError, TypeError, ValueError):
        return
    try:
        helper.from_local_dir(str(folder), None).validate_legal(limits)
    except (AttributeError, TypeError, OSError):
        return
    except ValueError as error:
        remedy = "Serve the merged model, or set spec.engine: embedded"
        raise StartRefusedError(
            "AdapterMismatch", f"{name} refuses adapter {folder.name}: {summarize_error(error)}. {remedy}"
        ) from error


def summarize_error(error: Exception) -> str:
    """Return the error's message in one line; for pydantic's errors, only the first message."""
    errors = getattr(error, "errors", None)
    found = str(errors()[0].get("msg", error)) if callable(errors) else str(error)
    found = "".join(letter if letter.isprintable() else " " for letter in found)
    line = " ".join(found.removeprefix("Value error, ").split()).rstrip(".").replace(". ", "; ")
    return line if len(line) <= MAX_MESSAGE_CHARACTERS else f"{line[:MAX_MESSAGE_CHARACTERS]}…"


def _import_first(name: str, modules: tuple[str, ...]) -> Any:
    """Return the attribute of the first module that has it. Raises ImportError."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"{name} is in none of {', '.join(modules)}")


def _read_tensor_names(folder: Path) -> list[str]:
    """Return the names of an adapter's tensors; none if they are not in safetensors."""
    try:
        with open(folder / "adapter_model.safetensors", "rb") as file:
            return list(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
    except (OSError, ValueError):
        return []


if __name__ == "__main__":
    main(sys.argv[1:])
