"""The training loop: batches in, steps out, with evaluations and checkpoints between."""

import math
import shlex
import signal
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch

from mlmlab.data.loader import EvalLoader, StepBatch, TrainLoader
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.errors import Code, Interrupted, RunFailed, UserError
from mlmlab.evaluation.config import LOSS, PERPLEXITY, TrainEvalConfig
from mlmlab.evaluation.evaluators import Evaluator, figures_of
from mlmlab.evaluation.masked_perplexity import (
    Evaluation,
    EvaluationInterrupted,
    evaluate,
    perplexity,
)
from mlmlab.model import MaskedLanguageModel
from mlmlab.runtime.config import Precision
from mlmlab.runtime.signals import Interruptions
from mlmlab.tracking.progress_bar import ProgressBar, shown
from mlmlab.tracking.summary import peak_memory_bytes
from mlmlab.tracking.tracker import Tracker
from mlmlab.training.config import TrainConfig
from mlmlab.training.failure import Attempt, write_failure
from mlmlab.training.metrics import Window
from mlmlab.training.optimizer import build_optimizers
from mlmlab.training.parallel import Replica
from mlmlab.training.profiling import Profiler
from mlmlab.training.schedule import Horizon, build_schedule, learning_rate_factor
from mlmlab.training.state import (
    DamagedCheckpoint,
    ProgressRecord,
    check_state,
    load_state,
    load_weights,
    remove_old,
    save_state,
)
from mlmlab.training.step import StepResult, train_step


@dataclass(frozen=True)
class Training:
    """What the loop returns."""

    final: Evaluation
    """Of the weights that are exported."""
    own_figures: Mapping[str, float]
    """Those of the user's own evaluators, by tag."""
    record: ProgressRecord
    early: bool
    """Whether it ended before its horizon, for want of better evaluations."""
    exported_step: int
    """The step whose weights the model has, and `final` is the evaluation of."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a run's figures and checkpoints go, and where its signals come from."""

    run_dir: Path
    bar: ProgressBar
    tracker: Tracker | None
    """None in every process but the first."""
    tokenizer: Tokenizer
    fingerprint: str
    """Of the config; both are part of a checkpoint."""
    interruptions: Interruptions
    changes: tuple[str, ...] = ()
    """KEY=VALUE for all that a resume has changed."""
    profiler: Profiler | None = None
    completions: Callable[[MaskedLanguageModel], list[str]] | None = None
    """What the model makes of the texts of `eval.fill_mask`, as lines to print at every evaluation;
    every process calls it."""


class Loop:
    """A run in progress. `train` is the loop; the rest is what it does now and then."""

    def __init__(
        self,
        replica: Replica,
        train_loader: TrainLoader,
        eval_loader: EvalLoader,
        *,
        config: TrainConfig,
        eval_config: TrainEvalConfig,
        horizon: Horizon,
        evaluators: list[Evaluator],
        outputs: Outputs,
        resumed_from: Path | None = None,
    ) -> None:
        self.replica = replica
        self.ranks = replica.ranks
        self.optimizers = build_optimizers(replica.model, config)
        self.schedule = build_schedule(config)
        self.train_loader = train_loader
        self.eval_loader = eval_loader
        self.config = config
        self.eval_config = eval_config
        self.outputs = outputs
        self.bar = outputs.bar
        self.horizon = horizon
        self.evaluators = evaluators
        self.own_figures: dict[str, float] = {}
        """Those of the last evaluation, by tag."""
        self.completions: list[str] = []
        """Those of the last evaluation."""
        self.record = ProgressRecord()
        if resumed_from is not None:
            self.record = load_state(resumed_from, replica, self.optimizers)
        self.window = Window(self.record, self.ranks, replica.compute.device)
        self.suppressed = torch.zeros((), device=replica.compute.device)
        self.saves_made = 0
        """Requests for a checkpoint that have been met: the batch ahead may still have them."""
        self.exported_step: int | None = None
        """Set when the best weights have replaced the last ones: there is nothing to save then."""
        self.empty_batches = 0
        """How many in a row, up to now, had nothing to learn."""
        self.unread: Attempt | None = None
        """The last step, whose gradient nobody has looked at yet."""

    def train(self) -> Training:
        """Trains to the horizon, from the step that the record has reached.

        Raises:
            RunFailed: the loss or a gradient is not finite.
            Interrupted: a signal asked for it; there is a checkpoint.
        """
        evaluation = self._evaluate() if self.record.evaluation_due else None
        if evaluation is not None and self.config.exports_best:
            self._save()  # no step may turn out better than the weights it starts from
        self.window.resume()
        batches = self._batches()
        early = self._has_lost_patience()
        while not early and not self.horizon.is_reached(self.record):
            with self.window.waiting_for_data():
                batch = next(batches)
            if self._is_stop_asked(batch):
                self._stop()
            result = self.advance(batch)
            if self.outputs.profiler is not None and (text := self.outputs.profiler.step()):
                self.bar.line(text)
            at_end = self.horizon.is_reached(self.record)
            if at_end or self._is_multiple(result, self.config.log_every_steps):
                self._log(result)
            evaluate_now = at_end or self._evaluation_is_due(result)
            save_now = at_end or batch.requests.saves > self.saves_made
            save_now = save_now or self._save_is_due(result, evaluate_now)
            if evaluate_now or save_now:
                self._refuse_non_finite()
                self.window.pause()
                if evaluate_now:
                    self.record = replace(self.record, evaluation_due=True)
                    evaluation = self._evaluate()
                    early = self._has_lost_patience()
                is_best = self.record.best_step == self.record.steps
                if save_now or is_best or early:
                    self._save()
                    self.saves_made = batch.requests.saves
                self.window.resume()
            if result is not None and result.overflowed:
                batches.close()  # the one ahead was prepared for one step more
                batches = self._batches()
        batches.close()
        self.window.pause()
        is_last_best = self.record.best_step == self.record.steps
        if self.config.exports_best and not is_last_best and self._load_best():
            evaluation = None
        if evaluation is None:  # of the best weights, or the run was over before it was resumed
            evaluation = self._score()
        self.bar.close()
        early = early and not self.horizon.is_reached(self.record)
        step = self.record.steps if self.exported_step is None else self.exported_step
        return Training(evaluation, self.own_figures, self.window.noted(self.record), early, step)

    def _load_best(self) -> bool:
        """Puts the best checkpoint's weights into the model, or prints why the last ones stay."""
        step = self.record.best_step
        folder = self.outputs.run_dir / "checkpoints" / f"step_{step}"

        def damage() -> str | None:
            if self.record.best_value is None:
                return f"no evaluation had a value of {self.eval_config.monitor}"
            try:
                check_state(folder, self.outputs.fingerprint)
            except DamagedCheckpoint as error:
                return f"{folder}: {error}"
            return None

        if (reason := self.ranks.on_rank_zero(damage)) is not None:
            self.bar.line(f"the last weights are exported, not the best ones: {reason}")
            return False
        load_weights(folder, self.replica)
        self.exported_step = step
        return True

    def _batches(self) -> Generator[StepBatch, None, None]:
        return self.train_loader.batches(self.record.batches, self.record.steps)

    def advance(self, batch: StepBatch) -> StepResult | None:
        """One step and the record of it; none for a batch with nothing to learn."""
        result = None
        self._refuse_nothing_to_learn(batch)
        if batch.loss_weight:
            before = self.record
            result = self.attempt(batch)
            self._refuse_non_finite()  # one step late, so that the device is never idle
            self.unread = Attempt(before, batch, result)
            if not result.overflowed:
                self.window.add(result, batch)
                self.bar.advance()
        overflowed = result is not None and result.overflowed
        scale = self.record.loss_scale
        if result is not None and self._is_scaled:
            scale = scale.after(overflowed=overflowed)
        self.record = replace(
            self.record,
            batches=self.record.batches + 1,
            steps=self.record.steps + (result is not None and not overflowed),
            skipped_steps=self.record.skipped_steps + overflowed,
            tokens=self.record.tokens + batch.token_count,
            loss_scale=scale,
        )
        return result

    def _refuse_nothing_to_learn(self, batch: StepBatch) -> None:
        self.empty_batches = 0 if batch.loss_weight else self.empty_batches + 1
        # One batch of a few tokens may well have none to predict, but not a thousand of them.
        if self.empty_batches > max(1000, self.train_loader.order.batches_per_epoch):
            self.bar.close()
            raise RunFailed(
                f"step {self.record.steps}: {self.empty_batches:,} batches in a row had no token "
                "to predict.\nIs the tokenizer one for this text? What it makes of a text, and "
                "what is masked: python -m mlmlab.show_masks TEXT --tokenizer NAME"
            )

    def attempt(self, batch: StepBatch) -> StepResult:
        """Applies a step to the weights, and nothing else."""
        factor = learning_rate_factor(
            self.record.steps,
            self.horizon.total_steps,
            self.config.warmup(self.horizon.total_steps),
            self.schedule,
        )
        return train_step(
            self.replica,
            self.optimizers,
            batch,
            schedule_factor=factor,
            max_grad_norm=self.config.max_grad_norm,
            seeds=self.train_loader.seeds,
            suppressed=self.suppressed,
            loss_scale=self.record.loss_scale.scale if self._is_scaled else None,
        )

    @property
    def _is_scaled(self) -> bool:
        return self.replica.compute.precision is Precision.FP16

    def _refuse_non_finite(self) -> None:
        if self.unread is None or not self.unread.result.is_non_finite():
            return
        self.bar.close()
        attempt, self.unread = self.unread, None
        self.record = attempt.before  # the weights are as they were then: the rest was suppressed
        raise RunFailed(
            write_failure(
                attempt,
                self.train_loader.order,
                self.ranks,
                self.outputs.run_dir,
                lambda folder: self._save_to(folder),
            )
        )

    def _log(self, result: StepResult | None) -> None:
        self._refuse_non_finite()
        if result is None or result.overflowed or self.window.loss_weight == 0:
            return
        loss = self.window.mean_loss()  # waits for the device
        self.record = replace(self.record, train_loss=loss)
        speed = self.window.speed(self.replica.model.config, self.train_loader.blocks.block_size)
        self.bar.show(loss, perplexity(loss), speed["train/tokens_per_second"])
        figures = {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "train/learning_rate": self.config.learning_rate * result.schedule_factor,
            "train/grad_norm": result.grad_norm.item(),
            "train/masking_rate": self.window.masking_rate,
            **speed,
        }
        if (peak := peak_memory_bytes(self.replica.compute.device)) is not None:
            figures["usage/peak_memory_bytes"] = peak
        if self._is_scaled:
            figures["train/loss_scale"] = self.record.loss_scale.scale
            figures["train/skipped_steps"] = self.record.skipped_steps
        self._track(figures)
        self.window.restart()

    def _track(self, figures: dict[str, float]) -> None:
        if self.outputs.tracker is not None:
            self.outputs.tracker.log(self.record.steps, {"epoch": self.epoch, **figures})

    @property
    def epoch(self) -> float:
        """Passes over the training examples, with their fraction."""
        return round(self.record.batches / self.train_loader.order.batches_per_epoch, 6)

    def _is_multiple(self, result: StepResult | None, steps: int) -> bool:
        """Whether this batch made the step count a multiple of `steps`."""
        applied = result is not None and not result.overflowed
        return applied and self.record.steps % steps == 0

    def _evaluation_is_due(self, result: StepResult | None) -> bool:
        if self.eval_config.every_steps is not None:
            return self._is_multiple(result, self.eval_config.every_steps)
        return self.record.batches % self.train_loader.order.batches_per_epoch == 0

    def _save_is_due(self, result: StepResult | None, evaluate_now: bool) -> bool:
        if self.config.save_every_steps is not None:
            return self._is_multiple(result, self.config.save_every_steps)
        return evaluate_now

    def _is_stop_asked(self, batch: StepBatch) -> bool:
        """Alone, a process stops at once; several must agree, which they did a batch ahead."""
        if self.ranks.size == 1:
            return self.outputs.interruptions.is_stop_asked
        return batch.requests.stops > 0

    def _has_lost_patience(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.record.evaluations_since_best >= patience

    def _score(self) -> Evaluation:
        try:
            with self.replica.evaluating() as model:
                evaluation = evaluate(
                    model,
                    self.eval_loader,
                    self.replica.compute,
                    self.bar,
                    ranks=self.ranks,
                    is_interrupted=lambda: self.outputs.interruptions.is_stop_asked,
                )
                tokenizer, device = self.outputs.tokenizer, self.replica.compute.device
                self.own_figures = figures_of(self.evaluators, model, tokenizer, device, self.ranks)
                if self.outputs.completions is not None:
                    self.completions = self.outputs.completions(model)
                return evaluation
        except EvaluationInterrupted:
            self._stop()

    def _evaluate(self) -> Evaluation:
        started = time.perf_counter()
        result = self._score()
        if result.masked_count and not math.isfinite(result.loss):
            self.bar.close()
            raise RunFailed(
                f"step {self.record.steps}: the evaluation's loss is {result.loss}.\n"
                "The weights hold inf or nan, or the forward pass overflows: try "
                "runtime.precision=fp32, and look at what the run started from."
            )
        figures = {LOSS: result.loss, PERPLEXITY: result.perplexity, **self.own_figures}
        if self.eval_config.monitor not in figures:
            self.bar.close()
            raise UserError.of(
                "eval.monitor",
                code=Code.NOT_FOUND,
                found=f"{self.eval_config.monitor}, which is no figure of this run's evaluations",
                expected=f"one of {', '.join(figures)}",
                remedy=f"eval.monitor={next(reversed(figures))}",
            )
        spent = {"train/tokens": self.record.tokens, "train/seconds": self.window.step_seconds}
        self._track(figures | {"eval/seconds": time.perf_counter() - started} | spent)
        self.record = replace(self.record, evaluation_due=False)
        self._compare(result, figures[self.eval_config.monitor])
        self.bar.detail(
            f"evaluation  step {self.record.steps:,}  loss {shown(result.loss)}  "
            f"perplexity {shown(result.perplexity)} ± {shown(result.perplexity_standard_error)}"
            + "".join(
                f"  {tag.removeprefix('eval/')} {x:.4g}" for tag, x in self.own_figures.items()
            )
        )
        if self.completions:
            self.bar.detail("\n".join(self.completions))
            if self.outputs.tracker is not None:
                text = "\n".join(self.completions)
                self.outputs.tracker.text(self.record.steps, "fill_mask", text)
        return result

    def _compare(self, result: Evaluation, value: float) -> None:
        """Notes an evaluation as the initial one, the best one, or one more that is no better.

        Args:
            value: of the monitored figure; nan, where there was nothing to measure, is neither
                better nor worse.
        """
        loss = result.loss if result.masked_count else None
        if self.record.steps == 0:
            error = result.loss_standard_error
            self.record = replace(
                self.record,
                initial_eval_loss=loss,
                initial_eval_loss_standard_error=None if math.isnan(error) else error,
            )
        if math.isnan(value):
            return
        if self.eval_config.is_better(value, self.record.best_value):
            self.record = replace(
                self.record,
                best_value=value,
                best_eval_loss=loss,
                best_step=self.record.steps,
                evaluations_since_best=0,
            )
        else:
            since_best = self.record.evaluations_since_best + 1
            self.record = replace(self.record, evaluations_since_best=since_best)

    def _save(self) -> None:
        """A checkpoint; if the disk is full, the run continues without it."""
        self.record = self.window.noted(self.record)
        if not (keep := self.config.keep_checkpoints) or self.exported_step is not None:
            return
        run_dir, step = self.outputs.run_dir, self.record.steps
        try:
            self._save_to(run_dir / "checkpoints" / f"step_{step}")
            if self.ranks.is_rank_zero:
                remove_old(run_dir, keep, self.record)
        except OSError as error:
            self.bar.line(
                f"checkpoint of step {step:,} NOT written: {error.strerror or error}; those "
                "before it are still there, and the run continues"
            )

    def _save_to(self, folder: Path) -> None:
        tracker = self.outputs.tracker
        save_state(
            folder,
            self.replica,
            self.outputs.tokenizer,
            self.optimizers,
            self.record,
            self.outputs.fingerprint,
            flush_logs=dict if tracker is None else tracker.flush,
        )

    def _stop(self) -> NoReturn:
        self._refuse_non_finite()
        self.window.pause()
        self._save()
        self.bar.close()
        asked = self.outputs.interruptions.signal or signal.SIGTERM
        run_dir = self.outputs.run_dir
        command = shlex.join([f"resume={run_dir}", *self.outputs.changes])
        kept = f"python -m mlmlab.train {command} resumes it"
        if not self.config.keep_checkpoints:
            kept = "train.keep_checkpoints=0: no checkpoint was written"
        raise Interrupted(
            asked,
            f"stopped by {signal.Signals(asked).name} after step {self.record.steps:,}.\n{kept}",
        )
