"""Report what this machine has and lacks for `hone run` and `hone serve`. Pure."""

from hone_api.byte_sizes import GIB, format_gib
from hone_api.gpucheck.facts import Torch

from hone_cli.doctor.checks.findings import Finding, Unread, join_names, report_unread
from hone_cli.doctor.machine import MachineFacts

# The models of the quickstart fit with these; others need more.
LEAST_MEMORY, LEAST_DISK = 4 * GIB, 10 * GIB
SUPPORTED = ((3, 11), (3, 13))


def check_machine(facts: MachineFacts) -> list[Finding]:
    """Return all findings about this machine."""
    return [
        _check_python(facts),
        _check_torch(facts),
        _check_devices(facts),
        _check_gpus(facts),
        _check_amount(
            "memory", "Free memory", facts.memory, LEAST_MEMORY, "End other programs, or use a smaller model."
        ),
        _check_amount(
            "disk", "Free disk space in the current folder", facts.free, LEAST_DISK, "Free some, or use `--output`."
        ),
        _check_cache(facts),
        _check_hub(facts),
    ]


def _check_python(facts: MachineFacts) -> Finding:
    version = ".".join(map(str, facts.python))
    if not SUPPORTED[0] <= facts.python <= SUPPORTED[1]:
        return Finding("python", "failed", f"Python {version} is not supported", "Use Python 3.11 to 3.13.")
    if facts.missing:
        message = f"Python {version}, and these packages of Hone's extra `trainer` are missing: "
        remedy = "To train here, run `pip install '.[trainer]'` in a checkout of Hone. For clusters it is not needed."
        return Finding("python", "warning", message + ", ".join(facts.missing), remedy)
    return Finding("python", "ok", f"Python {version} with the packages that training needs")


def _check_torch(facts: MachineFacts) -> Finding:
    torch = facts.torch
    if torch is None:
        return Finding("torch", "warning", "torch is not installed", "To train here, install the extra `trainer`.")
    if not isinstance(torch, Torch):
        remedy = "Run `python -c 'import torch'` in the same environment, and install torch again if that fails."
        return Finding("torch", "failed", f"The check of torch gave no answer: {torch}", remedy)
    build = f"ROCm {torch.hip}" if torch.hip else f"CUDA {torch.cuda}" if torch.cuda else "CPUs"
    message = f"torch {torch.version} is built for {build}"
    if facts.files.kfd is not None and not torch.hip:
        remedy = "Install the build of torch for ROCm, as pytorch.org describes, or use AMD's image rocm/pytorch."
        return Finding("torch", "failed", f"{message}, and this machine has AMD GPUs (/dev/kfd)", remedy)
    return Finding("torch", "ok", message)


def _check_devices(facts: MachineFacts) -> Finding:
    if facts.closed:
        found, _, remedy = facts.closed.partition(". ")
        return Finding("deviceFiles", "failed", found, f"{remedy}.")
    if facts.files.kfd is None:
        driver = f" though the driver amdgpu {facts.files.driver} is loaded" if facts.files.driver else ""
        return Finding("deviceFiles", "warning", f"There is no /dev/kfd{driver}: no AMD GPU computes here", _NO_GPU)
    if not facts.files.render:
        message = "There is /dev/kfd and no /dev/dri/renderD*"
        return Finding("deviceFiles", "failed", message, "Pass /dev/dri on to this container, or load amdgpu.")
    driver = f"; driver amdgpu {facts.files.driver}" if facts.files.driver else ""
    return Finding("deviceFiles", "ok", f"/dev/kfd and {len(facts.files.render)} renderD* can be opened{driver}")


_NO_GPU = (
    "Without a GPU `hone run` trains on the CPU. With one, install AMD's driver (amdgpu), and pass /dev/kfd and "
    "/dev/dri on to containers."
)


def _check_gpus(facts: MachineFacts) -> Finding:
    torch = facts.torch
    if not isinstance(torch, Torch):
        return Finding("gpus", "unknown", "Without torch it is not known whether GPUs compute", "See the check torch.")
    broken = [f"GPU {index} {each.name}: {each.error}" for index, each in enumerate(torch.devices) if each.error]
    if broken:
        message = f"{len(broken)} of {torch.seen} GPUs do not compute: {join_names(broken)}"
        return Finding("gpus", "failed", message, "Look for amdgpu in the output of `dmesg`, and at `amd-smi`.")
    if torch.seen:
        names = sorted({f"{each.name} ({each.architecture})" for each in torch.devices})
        return Finding("gpus", "ok", f"torch sees {torch.seen} GPUs, and they compute: {join_names(names)}")
    text = f": {torch.error}" if torch.error and torch.hip else ""
    if facts.files.kfd is not None:
        hiding = ", ".join(f"{name}={value}" for name, value in facts.files.visible.items())
        remedy = f"Unset {hiding}." if hiding else "Install a torch whose ROCm fits the driver; see deviceFiles."
        return Finding("gpus", "failed", f"torch sees no GPU{text}", remedy)
    return Finding("gpus", "warning", f"torch sees no GPU{text}", _NO_GPU)


def _check_amount(check: str, what: str, amount: int | Unread, least: int, remedy: str) -> Finding:
    if isinstance(amount, Unread):
        return report_unread(check, what, amount, is_required=False)
    message = f"{what}: {format_gib(amount)}"
    if amount < least:
        return Finding(check, "warning", f"{message}, less than {format_gib(least, 0)}", remedy)
    return Finding(check, "ok", message)


def _check_cache(facts: MachineFacts) -> Finding:
    if facts.cache_error:
        message = f"Models can't be written to {facts.cache}: {facts.cache_error}"
        return Finding("hubCache", "failed", message, "Set HF_HOME to a folder that you may write to.")
    return _check_amount("hubCache", f"Cache of the hub {facts.cache}, free", facts.cache_free, LEAST_DISK, _CACHE)


_CACHE = "Set HF_HOME to a folder on a larger disk, or remove models with `hf cache`."


def _check_hub(facts: MachineFacts) -> Finding:
    if facts.hub is None:
        message = "The hub is not asked: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
        return Finding("hub", "ok", message, "Models and datasets have to be in the cache, or in local folders.")
    if isinstance(facts.hub, int) and facts.hub < 500:
        return Finding("hub", "ok", f"The hub answers: {facts.hub_url}")
    found = f"answers with status {facts.hub}" if isinstance(facts.hub, int) else f"can't be reached: {facts.hub}"
    remedy = "Set HTTPS_PROXY or HF_ENDPOINT, or use local models and datasets with HF_HUB_OFFLINE=1."
    return Finding("hub", "warning", f"The hub {facts.hub_url} {found}", remedy)
