"""The model before and after training: its loss on held-out rows, and its answers to spec.evaluation.prompts.

The values measured before the first step are saved in the output folder, so that a run that is resumed keeps them.
`pipeline` compares both and puts them into manifest.json and the report.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from hone_api.io.durable_files import write_atomically
from hone_api.layout import CHECKPOINTS
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hone_trainer.preparation.prepare import Prepared
from hone_trainer.preparation.prompts import EvalPrompt
from hone_trainer.progress.terminal import Terminal
from hone_trainer.runtime.checksums import CHECKSUM, checksum_content
from hone_trainer.runtime.signals import StopSignal
from hone_trainer.storage.checkpoints import RunTotals
from hone_trainer.training import rng_state
from hone_trainer.training.trainer import HoneTrainer

# Beyond it, e to the loss exceeds the range of a float.
LARGEST_LOSS = 709.0
BEFORE = f"{CHECKPOINTS}/before.json"


@dataclass(frozen=True)
class EvaluationResult:
    """The values measured for one model: evaluation loss (nats per token, as in TRL) and an answer to each prompt."""

    loss: float | None = None
    perplexity: float | None = None
    answers: list[str] = field(default_factory=list)


def generate_answers(
    trainer: HoneTrainer, tokenizer: PreTrainedTokenizerBase, questions: list[EvalPrompt]
) -> list[str]:
    """Return the greedy answer to each question. One at a time, so that no padding affects it."""
    network: Any = trainer.accelerator.unwrap_model(trainer.model)
    stops = {tokenizer.eos_token_id, *_make_list(network.generation_config.eos_token_id)} - {None}
    was_training = network.training
    network.eval()
    try:
        with rng_state.preserve_rng_states(), torch.no_grad(), trainer.accelerator.autocast():
            return [_generate_answer(network, tokenizer, question, sorted(stops)) for question in questions]
    finally:
        network.train(was_training)


def _generate_answer(network: Any, tokenizer: PreTrainedTokenizerBase, question: EvalPrompt, stops: list[int]) -> str:
    read = torch.tensor([question.tokens], device=network.device)
    # The model's own generation config may sample or penalize repetition; the same prompt must show what was learned.
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=question.max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stops), 0),
        use_cache=True,
    )  # type: ignore[no-untyped-call]
    written = network.generate(input_ids=read, attention_mask=torch.ones_like(read), generation_config=greedy)
    return str(tokenizer.decode(written[0, len(question.tokens) :], skip_special_tokens=True))


def _make_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def make_baseline_measurement(
    trainer: HoneTrainer, prepared: Prepared, root: Path, stop: StopSignal, terminal: Terminal
) -> Callable[[], None]:
    """Return the function that HoneTrainer calls before its first step: it measures the untouched model.

    The result is written below `root`.
    """

    def measure() -> None:
        with stop.allow_immediate_stop():
            loss = None
            if trainer.eval_dataset is not None:
                with rng_state.preserve_rng_states():
                    loss = trainer.evaluate()["eval_loss"]
            given = _ask_prompts("base", trainer, prepared, terminal)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            found = EvaluationResult(loss, compute_perplexity(loss, trainer), given)
            if trainer.is_world_process_zero():
                content = asdict(found)
                write_atomically(root / BEFORE, json.dumps(content | {CHECKSUM: checksum_content(content)}))

    return measure


def read_baseline(root: Path, terminal: Terminal) -> EvaluationResult:
    """Return what `make_baseline_measurement` wrote; nothing, after a warning, when the file is missing or damaged."""
    path = root / BEFORE
    try:
        content = json.loads(path.read_bytes())
        expected = content.pop(CHECKSUM, None)  # earlier versions wrote no checksum
        if expected in (None, checksum_content(content)):
            return EvaluationResult(**content)
        problem = "has other content than was written"
    except FileNotFoundError:
        problem = "is missing"
    except (ValueError, TypeError, AttributeError):
        problem = "can't be understood"
    terminal.print_warnings([f"{path} {problem}: what was measured before training is left out"])
    return EvaluationResult()


def measure_trained_model(
    trainer: HoneTrainer, prepared: Prepared, totals: RunTotals, terminal: Terminal
) -> EvaluationResult:
    """Measure the trained model; its evaluation loss is the one that training ended with."""
    loss = totals.eval_metrics.get("eval_loss")
    return EvaluationResult(
        loss, compute_perplexity(loss, trainer), _ask_prompts("trained", trainer, prepared, terminal)
    )


def _ask_prompts(which: str, trainer: HoneTrainer, prepared: Prepared, terminal: Terminal) -> list[str]:
    questions = prepared.questions
    if not questions:
        return []
    terminal.print_note(f"asking the {which} model {len(questions)} prompt{'s' if len(questions) > 1 else ''}")
    return generate_answers(trainer, prepared.tokenizer, questions)


def compute_perplexity(loss: float | None, trainer: HoneTrainer) -> float | None:
    """Return e to the loss; None when the loss is not the pure negative log-likelihood of a token, or too large."""
    args: Any = trainer.args
    if loss is None or args.loss_type != "nll" or args.label_smoothing_factor or trainer.aux_loss_enabled:
        return None
    return math.exp(loss) if loss < LARGEST_LOSS else None


def make_comparison_metrics(first: EvaluationResult, last: EvaluationResult) -> dict[str, float]:
    """Return evalLossBefore, evalLossAfter, perplexityBefore and perplexityAfter, as far as they were measured."""
    found = {
        "evalLossBefore": first.loss,
        "evalLossAfter": last.loss,
        "perplexityBefore": first.perplexity,
        "perplexityAfter": last.perplexity,
    }
    return {name: value for name, value in found.items() if value is not None}


def describe_comparison(figures: dict[str, float]) -> str | None:
    """Return a sentence that compares the two models, when both were measured."""
    if not {"evalLossBefore", "evalLossAfter"} <= figures.keys():
        return None
    text = f"evaluation loss {figures['evalLossBefore']:.4g} before, {figures['evalLossAfter']:.4g} after"
    if not {"perplexityBefore", "perplexityAfter"} <= figures.keys():
        too_large = figures["evalLossBefore"] >= LARGEST_LOSS or figures["evalLossAfter"] >= LARGEST_LOSS
        return f"{text}; a perplexity is too large to be given" if too_large else text
    return f"{text}; perplexity {figures['perplexityBefore']:.4g} before, {figures['perplexityAfter']:.4g} after"
