"""The steps, in their order: name, title, function and time limit. An acceptance run takes them one after another."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step. `function`: module and name. `seconds`: its time limit, after which it is ended, and failed."""

    name: str
    title: str
    function: str
    seconds: int


STEPS = (
    Step("doctor", "hone doctor on this machine", "acceptance.checks:examine_machine", 600),
    Step("image", "the runtime image on AMD's base", "acceptance.checks:examine_image", 300),
    Step("inputs", "models and rows, made here", "acceptance.inputs:make_inputs", 600),
    Step("lora", "the how-to's LoRA run", "acceptance.training:train_lora", 1200),
    Step("full", "the how-to's full run", "acceptance.training:train_full", 1200),
    Step("qlora", "QLoRA", "acceptance.training:train_qlora", 1200),
    Step("paged", "8-bit and paged optimizers", "acceptance.training:train_paged", 1200),
    Step("pagedPlace", "where paged states lie", "acceptance.checks:place_paged_states", 600),
    Step("profile", "profile auto", "acceptance.training:train_profile", 1200),
    Step("ddp", "two processes with DDP", "acceptance.training:train_two_ddp", 1200),
    Step("fsdp", "two processes with FSDP2", "acceptance.training:train_two_fsdp", 1200),
    Step("resume", "a run killed and started again", "acceptance.training:resume_after_kill", 1800),
    Step("evaluation", "answers before and after change nothing", "acceptance.training:compare_evaluated", 1800),
    Step("memory", "the memory estimate", "acceptance.training:compare_memory", 2400),
    Step("engine", "the embedded engine", "acceptance.serving:serve_embedded", 1800),
    Step("vllm", "vLLM", "acceptance.serving:serve_vllm", 2400),
    Step("levers", "benchmarks/auto_profile.py", "acceptance.checks:measure_levers", 3600),
)
