"""Steps that examine the machine and the libraries: the doctor, the image, where paged states are, the levers."""

import json
import os
import subprocess
import sys
from pathlib import Path

from acceptance.context import ROOT, Context, Failed, Figures, NotRun, need_gpu

PAGED_BYTES = 2 << 30
IMAGE_PACKAGES = Path("/opt/hone")


def examine_machine(context: Context) -> Figures:
    """Run the checks of `hone doctor --local`. Raises Failed when one fails, or does not report a GPU that works."""
    from hone_cli.doctor import machine, machine_findings
    from hone_cli.doctor.checks.findings import make_document

    document = make_document("local", machine_findings.check_machine(machine.collect_machine(dict(os.environ))))
    print(json.dumps(document, indent=2), flush=True)
    failed = [f"{each['check']}: {each['message']}" for each in document["checks"] if each["status"] == "failed"]
    if failed:
        raise Failed("; ".join(failed))
    gpus = [each for each in document["checks"] if each["check"] == "gpus"]
    if context.vendor != "none" and not any(each["status"] == "ok" for each in gpus):
        raise Failed(f"torch computes on a GPU here, and the check gpus is not ok: {gpus}")
    return {"checks": {each["check"]: each["status"] for each in document["checks"]}}


def examine_image(context: Context) -> Figures:
    """Check that this is the runtime image, on a torch for ROCm."""
    import bitsandbytes
    import hone_trainer
    import torch

    found = Path(hone_trainer.__file__)
    if not found.is_relative_to(IMAGE_PACKAGES):
        raise NotRun("this is not a container of the runtime image; see docs/images.md to run it in one")
    if not torch.version.hip:
        raise Failed(f"the image's torch {torch.__version__} is not built for ROCm")
    return {"torch": torch.__version__, "hip": torch.version.hip, "bitsandbytes": bitsandbytes.__version__}


def place_paged_states(context: Context) -> Figures:
    """Find out whether the states of a paged optimizer are in the GPU's memory or the host's.

    On an AMD GPU without HSA_XNACK=1 the documentation states the host's. Raises Failed if this is wrong.
    """
    need_gpu(context)
    import bitsandbytes.functional as bnb
    import psutil
    import torch

    torch.zeros(1, device="cuda")
    gpu_before, host_before = torch.cuda.mem_get_info()[0], psutil.virtual_memory().available
    states = bnb.get_paged(PAGED_BYTES // 4, dtype=torch.float32, device=torch.device("cuda", 0))
    bnb.prefetch_tensor(states)
    bnb.fill(states, 1)  # by a kernel on the GPU, as the optimizer's step
    torch.cuda.synchronize()
    gpu = gpu_before - torch.cuda.mem_get_info()[0]
    host = host_before - psutil.virtual_memory().available
    xnack = os.environ.get("HSA_XNACK", "")
    found = {"bytes": PAGED_BYTES, "gpuBytesLess": gpu, "hostBytesLess": host, "HSA_XNACK": xnack}
    print(found, flush=True)
    where = "gpu" if gpu > PAGED_BYTES // 2 else "host" if gpu < PAGED_BYTES // 10 else "both"
    if context.vendor == "amd" and xnack == "1":
        raise NotRun(
            f"HSA_XNACK is 1, for which no place is documented; the states lie in the memory of {where}: {found}"
        )
    if context.vendor == "amd" and where != "host":
        raise Failed(f"the states lie in the memory of {where}, and the documentation expects the host's: {found}")
    return found | {"liesIn": where}


def measure_levers(context: Context) -> Figures:
    """Measure profile auto against AMD's how-to, one round."""
    rows, rounds = ("200", "1") if context.device == "gpu" else ("20", "1")
    command = [sys.executable, str(ROOT / "benchmarks/auto_profile.py"), "--rounds", rounds, "--rows", rows]
    environment = os.environ | {"HONE_BENCHMARK_GPUS": str(context.one)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    if done.returncode:
        raise Failed(f"benchmarks/auto_profile.py exited with code {done.returncode}")
    return {"printed": [line.strip() for line in done.stdout.splitlines()]}
