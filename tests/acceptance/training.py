"""Steps that train: the how-to's two runs, QLoRA, paged optimizers, two processes, a killed run."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acceptance.context import (
    Context,
    Failed,
    Figures,
    NotRun,
    check_learning,
    make_job,
    need_gpu,
    read_metrics,
    train,
    write_trainer_command,
)

KILL_STEPS = 24
MEASURED_STEPS = 8
TOLERANCE = 0.15


def train_lora(context: Context) -> Figures:
    """Train the how-to's LoRA run."""
    return check_learning(context, train(context, "lora", make_job(context, "lora")))


def train_full(context: Context) -> Figures:
    """Train the how-to's full run, long enough that the model memorizes its rows."""
    training = {"numTrainEpochs": 8, "learningRate": 1e-3, "lrSchedulerType": "linear", "maxGradNorm": 1.0}
    job = make_job(context, "full", "full", training=training)
    return check_learning(context, train(context, "full", job))


def train_qlora(context: Context) -> Figures:
    """Train LoRA on a base in 4 bits."""
    return check_learning(context, train(context, "qlora", make_job(context, "qlora", training={"maxSteps": 16})))


def train_paged(context: Context) -> Figures:
    """Train with bitsandbytes' 8-bit optimizer, paged and not."""
    found = {}
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        job = make_job(context, "full", "full", training={"optim": name, "maxSteps": 16, "learningRate": 1e-3})
        found[name] = check_learning(context, train(context, name, job))
    return found


def train_profile(context: Context) -> Figures:
    """Train with everything left to profile auto, so that its choices for this GPU are used."""
    job = make_job(context, "lora")
    job["spec"]["training"] = {"learningRate": 3e-3, "loggingSteps": 1, "maxSteps": 16, "maxLength": 128}
    job["spec"]["model"].pop("dtype")
    return check_learning(context, train(context, "profile", job))


def train_two_ddp(context: Context) -> Figures:
    """Train as two processes that each hold the model."""
    return _train_two(context, "ddp")


def train_two_fsdp(context: Context) -> Figures:
    """Train as two processes that each hold a part of the model."""
    return _train_two(context, "fsdp")


def _train_two(context: Context, parallelism: str) -> Figures:
    if context.device == "gpu" and context.gpus < 2:
        raise NotRun(f"it needs two GPUs, and this machine shows {context.gpus}")
    optimizer = {"optim": "adamw_torch_fused"} if parallelism == "fsdp" else {}
    training = {"parallelism": parallelism, "maxSteps": 12, "learningRate": 1e-3} | optimizer
    job = make_job(context, "full", "full", training=training, resources={"gpus": 2})
    return check_learning(context, train(context, parallelism, job))


def resume_after_kill(context: Context) -> Figures:
    """Kill a run with SIGKILL after a checkpoint, start it again, and compare it with one that was not killed."""
    training = {"maxSteps": KILL_STEPS, "perDeviceTrainBatchSize": 2}
    job = make_job(context, "lora", training=training, checkpoint={"saveSteps": 4, "saveTotalLimit": 2})
    killed_at = _kill_after_checkpoint(context, "killed", job)
    done = subprocess.run(
        write_trainer_command(context, "killed", job),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode:
        raise Failed(f"the run that was started again exited with code {done.returncode}")
    resumed = re.search(r"checkpoint at step (\d+)", done.stdout)
    if not resumed:
        raise Failed(f"the run that was started again did not use a checkpoint, and {killed_at} was there")
    output = context.folder / "killed"
    steps = [line["step"] for line in read_metrics(output) if "loss" in line]
    if steps != list(range(1, KILL_STEPS + 1)):
        raise Failed(f"after the restart the log of metrics has the steps {steps}")
    whole = train(context, "unkilled", job)
    is_same = _digest_adapter(output) == _digest_adapter(whole)
    return check_learning(context, output) | {
        "killedAfter": killed_at,
        "resumedFrom": int(resumed[1]),
        "sameBytesAsUnkilled": is_same,
    }


def _kill_after_checkpoint(context: Context, name: str, job: Mapping[str, Any]) -> str:
    """Kill the run as soon as a second checkpoint is there, so that the first is complete; return the second's name."""
    shutil.rmtree(context.folder / name, ignore_errors=True)
    command = write_trainer_command(context, name, job)
    print("$", *command, flush=True)
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            found = sorted((context.folder / name / "checkpoints").glob("step-*"))
            if len(found) > 1:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                print(f"killed after {found[-1].name}", flush=True)
                return found[-1].name
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    raise Failed(f"the run exited with code {process.returncode} before it saved two checkpoints")


def compare_evaluated(context: Context) -> Figures:
    """Check that answers before and after training change no byte of the trained weights."""
    job = make_job(context, "lora", training={"maxSteps": 12})
    evaluation = {"prompts": ["the trainer "], "maxNewTokens": 8}
    evaluated = make_job(context, "lora", training={"maxSteps": 12}, evaluation=evaluation)
    bare = _digest_adapter(train(context, "bare", job))
    if _digest_adapter(train(context, "evaluated", evaluated)) == bare:
        return {"sameBytes": True}
    if _digest_adapter(train(context, "bare-again", job)) != bare:
        raise NotRun("two equal runs without an evaluation differ on this GPU, so nothing can be concluded")
    raise Failed("a run with spec.evaluation.prompts has other weights than the same run without")


def _digest_adapter(output: Path) -> str:
    weights = (output / "adapter/adapter_model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest()


def compare_memory(context: Context) -> Figures:
    """Compare the memory estimate, without and with its allowance, with what torch allocates and reserves."""
    need_gpu(context)
    found: Figures = {}
    wrong = []
    for method in ("lora", "full", "qlora"):
        training = {"optim": "adamw_torch_fused", "maxSteps": MEASURED_STEPS, "maxLength": 1024, "learningRate": 1e-5}
        job = make_job(context, method, training=training)
        job["spec"]["model"]["claim"]["path"], job["spec"]["dataset"]["claim"]["path"] = "large", "long.jsonl"
        computed, total = _estimate(context, job)
        lines = read_metrics(train(context, f"memory-{method}", job))
        allocated = max(line.get("device_memory_allocated", 0) for line in lines)
        reserved = max(line.get("device_memory_reserved", 0) for line in lines)
        sizes = {"estimated": computed, "allocated": allocated, "withAllowance": total, "reserved": reserved}
        found[method] = sizes | {"ratio": allocated / computed}
        print(method, found[method], flush=True)
        if abs(allocated / computed - 1) > TOLERANCE:
            wrong.append(f"{method}: {allocated:,} bytes were allocated, {computed:,} estimated")
        if reserved > total:
            wrong.append(
                f"{method}: {reserved:,} bytes were reserved, above the estimate with its allowance, {total:,}"
            )
    if wrong:
        raise Failed("; ".join(wrong))
    return found


def _estimate(context: Context, job: Mapping[str, Any]) -> tuple[int, int]:
    """Return the estimated bytes of a job without and with the allowance."""
    from hone_api.finetunejobs.spec import FineTuneJobSpec
    from hone_trainer.memory import architecture, plan
    from hone_trainer.memory.formulas import estimate_memory
    from transformers import AutoConfig

    spec = FineTuneJobSpec.model_validate(job["spec"])
    settings = plan.make_memory_plan(
        spec, architecture.build_meta_model(AutoConfig.from_pretrained(context.folder / "large")), length=1024
    ).settings
    if settings is None:
        raise Failed("hone plan estimates no memory for a Llama")
    found = estimate_memory(settings)
    return found.computed, found.total
