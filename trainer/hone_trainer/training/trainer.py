"""TRL's SFTTrainer with checkpoints that are complete or absent, and with sums that survive a resume.

`pipeline` calls `fit` with the newest checkpoint. Trainer's own `train` computes the same steps as without an
interruption only when its sums, random states, order of rows and pending evaluation are restored; that is done here.
`storage.checkpoints` seals what Trainer writes.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from statistics import fmean
from threading import Thread
from typing import Any

import torch
from hone_api.reasons import INVALID_SPEC, NON_FINITE_LOSS, OUT_OF_MEMORY, HoneError
from peft import PeftModel
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.sft_trainer import SFTTrainer

from hone_trainer.data.batches import BatchCounts
from hone_trainer.distributed import fsdp
from hone_trainer.distributed.process_group import ProcessGroup
from hone_trainer.models import weight_files
from hone_trainer.runtime.errors import classify_error, translate_disk_full
from hone_trainer.runtime.signals import EvaluationInterrupted
from hone_trainer.storage import checkpoints
from hone_trainer.storage.checkpoints import Checkpoint, RunTotals
from hone_trainer.training import rng_state
from hone_trainer.training.restore_weights import restore_renamed
from hone_trainer.training.sampler import ReplayedGroups, SeededGroups

# A duration that only the first evaluation outside training logs, and therefore only some resumed runs.
PREPARATION = "eval_model_preparation_time"
BASE_MODEL = "Check the weights of spec.model, and compute in bfloat16 or float32 rather than float16."

SPOILED = "Use files of the base model whose weights are finite: download or convert it again."


class HoneTrainer(SFTTrainer):
    """SFTTrainer whose logs and metrics are the same whether or not a run was interrupted.

    `Trainer.train` resets its sums at each call; they are saved in the checkpoint and restored. `before_sealing` is
    called just before a checkpoint counts as complete. `group_batches` is that of `sampler`, for rows to train on.
    """

    def __init__(
        self,
        *args: Any,
        group: ProcessGroup,
        keep_checkpoints: int,
        before_sealing: Callable[[], None],
        group_batches: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._group = group
        self._group_batches = group_batches
        super().__init__(*args, **kwargs)
        self._before_sealing = before_sealing
        self._keep_checkpoints = keep_checkpoints
        self._resumed: RunTotals | None = None
        self._resume_from: Path | None = None
        self._order: ReplayedGroups | None = None
        self._evaluation_due = False
        self._grad_norm: Any = 0.0
        self._measure_before: Callable[[], None] | None = None
        self._removal: Thread | None = None
        self._began = time.monotonic()
        torch.serialization.set_crc32_options(False)  # checkpoints have checksums of their own
        self.add_callback(_BeginCallback(self))

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            fsdp.enable_fsdp(self.accelerator, self.args)
            self.is_fsdp_enabled = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        if self._group.world_size > 1:
            batch = sampler.batch_size * self._group.world_size
            return SeededGroups(batch, sampler.lengths, self._group_batches, self._data_seed, self._get_current_epoch)
        self._order = ReplayedGroups(sampler.batch_size, sampler.lengths, self._group_batches, self._get_current_epoch)
        if self._resume_from:
            self._order.load(self._resume_from)
        return self._order

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Return a sampler with the same order in every evaluation, even when the data loader is reused."""
        sampler = super()._get_eval_sampler(eval_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return SeededGroups(sampler.batch_size, sampler.lengths, None, self._data_seed)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _get_current_epoch(self) -> int:
        return int(self.state.epoch or 0)

    def fit(self, checkpoint: Checkpoint | None, measure_before: Callable[[], None] | None = None) -> RunTotals:
        """Train from the checkpoint, or from the start, to the end or to the step at which a callback stops training.

        `measure_before` is called with the model ready and untouched, unless training resumes from a checkpoint.
        """
        if checkpoint and checkpoint.totals.is_finished:
            return self._load_finished(checkpoint)
        if checkpoint:
            self._refuse_other_processes(checkpoint.totals)
            self.args.eval_on_start = False  # a resume is not the start
        self._resumed = checkpoint.totals if checkpoint else None
        self._resume_from = checkpoint.folder if checkpoint else None
        self._measure_before = None if checkpoint else measure_before
        try:
            self.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        except Exception as error:
            if classify_error(error).reason is OUT_OF_MEMORY:
                raise self._make_out_of_memory_error(classify_error(error).message) from error
            raise
        finally:
            self._end_removal()
        return replace(self.make_totals(), loss_since_log=0.0)  # `train` has added it to the sum at its end

    def _refuse_other_processes(self, before: RunTotals) -> None:
        if before.process_count != self._group.world_size:
            raise HoneError(
                INVALID_SPEC,
                f"The checkpoint at step {before.step} is of {before.process_count} processes, and this start has "
                f"{self._group.world_size}, whose steps would take other rows",
                remedy="Restore spec.resources.gpus, or empty the output folder to train from the beginning.",
            )

    def make_totals(self) -> RunTotals:
        """Return what has been done so far, in all starts of this run together."""
        before = self._resumed
        losses = self._group.all_gather(self._tr_loss.item())
        return RunTotals(
            step=self.state.global_step,
            total_steps=self.state.max_steps,
            tokens=self.tokens,
            runtime=time.monotonic() - self._began + (before.runtime if before else 0.0),
            samples=self._count_batches.count_rows(self.state.global_step),
            loss_sum=fmean(self._group.all_gather(self._total_loss_scalar)),
            loss_since_log=fmean(losses),
            losses_since_log=losses,
            last_logged_step=self._globalstep_last_logged,
            averages_since_log=dict(self._metrics["train"]),
            eval_metrics=self._find_last_evaluation(),
            evaluation_due=self._evaluation_due,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log values at a step. Raises HoneError NonFiniteLoss when a loss or gradient norm is not finite."""
        logs.pop(PREPARATION, None)
        super().log(logs, start_time)
        self._check_finite(loss=logs.get("loss", 0.0))
        if self.accelerator.scaler is None:  # float16's scaler skips steps whose gradients overflow
            self._check_finite(gradient_norm=logs.get("grad_norm", 0.0))
        loss = logs.get("eval_loss", 0.0)
        if not isfinite(loss) and self.state.global_step == 0:
            message = f"The evaluation loss of the base model is {loss}, before the first step"
            raise HoneError(NON_FINITE_LOSS, message, remedy=BASE_MODEL)
        self._check_finite(evaluation_loss=loss)

    def _check_finite(self, **values: float) -> None:
        """Raise HoneError NonFiniteLoss, with the name, when one of the values is NaN or infinite."""
        for name, value in values.items():
            if not isfinite(value):
                raise self._make_not_finite_error(f"{name.replace('_', ' ')} is {value}")

    @property
    def samples_a_step(self) -> float:
        """Rows per optimizer step, on average over the run."""
        return self._count_batches.count_rows(self.state.max_steps) / max(self.state.max_steps, 1)

    @property
    def _count_batches(self) -> BatchCounts:
        return BatchCounts(
            rows=len(self.train_dataset),  # type: ignore[arg-type]
            size=self.args.train_batch_size,
            processes=self.args.world_size,
            drops_last=self.args.dataloader_drop_last,
            accumulation=self.args.gradient_accumulation_steps,
        )

    @property
    def tokens(self) -> int:
        """Tokens trained on, in all starts of this run together."""
        return int(self._total_train_tokens)

    def _find_last_evaluation(self) -> dict[str, float]:
        for entry in reversed(self.state.log_history):
            if "eval_loss" in entry and entry["step"]:  # step 0 is the untouched model
                return {"eval_loss": entry["eval_loss"]}
        return {}

    def _load_finished(self, checkpoint: Checkpoint) -> RunTotals:
        """Load the trained weights: training was finished, and a later stage was interrupted."""
        totals = checkpoint.totals
        if self.is_fsdp_enabled:
            self._shard_model()
        self._load_from_checkpoint(str(checkpoint.folder))
        if not totals.evaluation_due:
            return totals
        self.state = TrainerState.load_from_json(str(checkpoint.folder / TRAINER_STATE_NAME))
        self._total_train_tokens = totals.tokens
        # otherwise Trainer casts the model for bf16_full_eval, and the cast model would be saved
        self.is_in_train = True
        self.evaluate()
        self.is_in_train = False
        return replace(totals, eval_metrics=self._find_last_evaluation())

    def _shard_model(self) -> None:
        """Shard the model, as `train` does before its first step."""
        self.create_optimizer()  # accelerate shards a model only together with its optimizer
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.model_wrapped = self.model
        register_fsdp_forward_method(self.model, "generate")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        totals = self.make_totals()
        self._check_state(totals)
        written = Path(str(self.args.output_dir)) / f"checkpoint-{totals.step}"
        try:
            with translate_disk_full(written):
                # SFTTrainer's own method adds a model card to the parent folder
                Trainer._save_checkpoint(self, model, trial)
                self._group.barrier()
                if self._group.is_main:
                    self._before_sealing()
                    self._end_removal()
                    outdated = checkpoints.commit_checkpoint(written, totals, self._keep_checkpoints)
                    self._removal = Thread(target=checkpoints.remove_checkpoints, args=(outdated,), name="removal")
                    self._removal.start()
                self._group.barrier()
        except Exception:
            shutil.rmtree(written, ignore_errors=True)
            raise

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._order:
            self._order.save(Path(output_dir))

    def _end_removal(self) -> None:
        if self._removal:
            self._removal.join()

    def _check_state(self, totals: RunTotals) -> None:
        """Raise HoneError NonFiniteLoss for a damaged state, which must not be saved and resumed from."""
        self._check_finite(loss=totals.loss_since_log)
        if self.accelerator.scaler is None:
            self._check_finite(gradient_norm=float(self._grad_norm))
        network: Any = self.model
        trained = [(name, found) for name, found in network.named_parameters() if found.requires_grad]
        parts = [fsdp.get_local_shard(found.detach()) for _, found in trained]
        # A sum is not finite when a summand is not; this takes a tenth of the time of checking each value.
        finite = torch.stack([part.sum(dtype=torch.float32).isfinite() for part in parts])
        if not finite.all():
            raise self._make_not_finite_error(f"weight {trained[int(finite.int().argmin())][0]} is not finite")

    def _make_not_finite_error(self, found: str) -> HoneError:
        has_learned = any(isfinite(entry.get("loss", nan)) for entry in self.state.log_history)
        if not has_learned and (spoiled := self._find_spoiled_weight()):
            message = f"The {found} at step {self.state.global_step}: {spoiled} of the base model is NaN or infinite"
            return HoneError(NON_FINITE_LOSS, message, remedy=SPOILED)
        rate = f"with spec.training.learningRate {self.args.learning_rate:g}"
        return HoneError(NON_FINITE_LOSS, f"The {found} at step {self.state.global_step}, {rate}")

    def _find_spoiled_weight(self) -> str | None:
        """Return a weight of the base model that is NaN or infinite: in an adapter's base, else in the files."""
        network: Any = self.model
        if not isinstance(network, PeftModel):
            folder = Path(network.name_or_path)
            return weight_files.find_not_finite(folder) if folder.is_dir() else None
        for name, found in network.named_parameters():
            if found.requires_grad or not found.is_floating_point():
                continue
            if not fsdp.get_local_shard(found.detach()).sum(dtype=torch.float32).isfinite():
                return str(name).removeprefix("base_model.model.")
        return None

    def _make_out_of_memory_error(self, found: str) -> HoneError:
        args: Any = self.args
        batch, length = args.per_device_train_batch_size, args.max_length
        advice = [f"lower spec.training.maxLength, which is {length}"] if length else ["set spec.training.maxLength"]
        if batch > 1:
            advice.insert(0, f"lower spec.training.perDeviceTrainBatchSize, which is {batch}")
        if not args.activation_checkpointing:
            advice.append("turn on spec.training.activationCheckpointing")
        if not isinstance(self.model, PeftModel):
            advice.append("set spec.method to lora")
        *first, last = advice
        remedy = f"{', '.join(first)}, or {last}" if first else last
        step = f"in the step after {self.state.global_step}"
        return HoneError(OUT_OF_MEMORY, f"{found}, {step}", remedy=f"{remedy[0].upper()}{remedy[1:]}.")

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self._grad_norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        return self._grad_norm

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Evaluate; at a signal to stop, leave it to the next start, which repeats it from the same state."""
        before = rng_state.get_rng_states()
        try:
            return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except EvaluationInterrupted:
            rng_state.set_rng_states(before)
            self._metrics["eval"].clear()
            self._evaluation_due = True
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Do as Trainer does, but ignore an evaluation that was left to the next start."""
        return bool(metrics) and bool(super()._determine_best_metric(metrics, trial))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load the random states, then do a pending evaluation: this is the last action of a resume before the first
        step.
        """
        super()._load_rng_state(checkpoint)
        if self._resumed and self._resumed.evaluation_due:
            self._determine_best_metric(super()._evaluate(None, None), None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        """Load as Trainer does, and find weights under all their names.

        PEFT loads an adapter as float32, although SFTTrainer had made that of qlora bfloat16.
        """
        network: Any = self.model
        types = {name: parameter.dtype for name, parameter in network.named_parameters() if parameter.requires_grad}
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        if not self.is_fsdp_enabled and isinstance(network, PreTrainedModel):
            restore_renamed(network, Path(resume_from_checkpoint))
        for name, parameter in network.named_parameters():
            if name in types and parameter.dtype != types[name]:
                parameter.data = parameter.data.to(types[name])

    def begin_training(self) -> None:
        """Measure the untouched model, or restore the checkpoint's sums, which `train` has just reset."""
        if self._measure_before:
            self._measure_before()
        self._began = time.monotonic()
        before = self._resumed
        if before is None:
            return
        self._total_train_tokens = before.tokens
        self._initial_global_step = 0
        self._total_loss_scalar = before.loss_sum
        losses = before.losses_since_log or [before.loss_since_log]
        self._tr_loss = torch.tensor(losses[self._group.rank], device=self.args.device)
        self._globalstep_last_logged = before.last_logged_step
        self._metrics["train"] = defaultdict(list, before.averages_since_log)


class _BeginCallback(TrainerCallback):
    """Calls `begin_training` once Trainer has set up its state, just before the first step."""

    def __init__(self, trainer: HoneTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.begin_training()


def make_final_metrics(totals: RunTotals) -> dict[str, float]:
    """Return the metrics of all starts of the run together; trainRuntime is in seconds."""
    runtime = max(totals.runtime, 1e-9)
    return {
        "trainLoss": (totals.loss_sum + totals.loss_since_log) / max(totals.step, 1),
        "trainRuntime": round(totals.runtime, 3),
        "trainSamplesPerSecond": round(totals.samples / runtime, 3),
        "trainStepsPerSecond": round(totals.step / runtime, 3),
        "numTokens": float(totals.tokens),
    }
