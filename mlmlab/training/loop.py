"""The training loop: batches in, updates out, with evaluations and checkpoints between."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mlmlab.errors import RunFailed
from mlmlab.loader import EvalLoader, TrainLoader, UpdateBatch
from mlmlab.model import MaskedLanguageModel
from mlmlab.tracking.progress import Progress, shown
from mlmlab.tracking.tracker import Tracker
from mlmlab.training.config import TrainConfig
from mlmlab.training.evaluation import Evaluation, evaluate, perplexity
from mlmlab.training.optimizer import build_optimizer
from mlmlab.training.precision import Compute
from mlmlab.training.schedule import learning_rate_factor
from mlmlab.training.state import ProgressRecord, remove_old, save_state
from mlmlab.training.step import UpdateResult, apply_update


@dataclass(frozen=True)
class Horizon:
    """How long the run is."""

    updates: int
    """Updates, if none is skipped."""
    batches: int | None
    """Batches of the epochs asked for; None if `train.max_steps` decides."""

    @classmethod
    def of(cls, config: TrainConfig, batches_per_epoch: int) -> "Horizon":
        """`max_steps` where it is set, else `epochs`."""
        if config.max_steps is not None:
            return cls(config.max_steps, None)
        batches = config.epochs * batches_per_epoch
        return cls(batches, batches)

    def is_reached(self, progress: ProgressRecord) -> bool:
        """Whether the run is over."""
        return progress.updates >= self.updates or (
            self.batches is not None and progress.batches >= self.batches
        )


@dataclass(frozen=True)
class Training:
    """What the loop returns."""

    final: Evaluation
    progress: ProgressRecord
    train_loss: float
    """Nats a predicted token, over the updates of the last log line."""
    seconds: float
    """Wall time of the loop, evaluations included."""
    step_seconds: float
    """Without the evaluations and checkpoints."""


class _Window:
    """The figures since the last log line, kept on the device until they are shown."""

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), device=device)
        self.masked_count = 0
        self.tokens = 0
        self.total_seconds = 0.0
        """Time in updates since the run began: evaluations and checkpoints are paused out."""
        self._seconds_before = 0.0
        self._clock = math.nan  # `resume` starts it

    def restart(self) -> None:
        """Begins a new window."""
        self.pause()
        self.loss_sum.zero_()
        self.masked_count = self.tokens = 0
        self._seconds_before = self.total_seconds
        self.resume()

    def pause(self) -> None:
        """Stops the clock."""
        self.total_seconds += time.perf_counter() - self._clock

    def resume(self) -> None:
        """Starts it again."""
        self._clock = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of this window so far."""
        running = time.perf_counter() - self._clock
        return self.total_seconds + running - self._seconds_before

    def add(self, result: UpdateResult, batch: UpdateBatch) -> None:
        """Counts an update in, without waiting for it."""
        self.loss_sum += result.loss_sum
        self.masked_count += batch.masked_count
        self.tokens += batch.token_count


class Loop:
    """A run in progress. `train` is the loop; the rest is what it does now and then."""

    def __init__(
        self,
        model: MaskedLanguageModel,
        train_loader: TrainLoader,
        eval_loader: EvalLoader,
        *,
        config: TrainConfig,
        eval_every_steps: int | None,
        seed: int,
        compute: Compute,
        run_dir: Path,
        tracker: Tracker,
        progress: Progress,
    ) -> None:
        self.model = model.to(compute.device)
        self.optimizer = build_optimizer(model, config)
        self.train_loader = train_loader
        self.eval_loader = eval_loader
        self.config = config
        self.eval_every_steps = eval_every_steps
        self.seed = seed
        self.compute = compute
        self.run_dir = run_dir
        self.tracker = tracker
        self.progress = progress
        self.horizon = Horizon.of(config, train_loader.order.batches_per_epoch)
        self.record = ProgressRecord()
        self.window = _Window(compute.device)
        self.train_loss = math.nan
        self.masking_rate = train_loader.masking.rate

    def train(self) -> Training:
        """Trains to the horizon.

        Raises:
            RunFailed: the loss or a gradient is not finite.
        """
        started = time.perf_counter()
        evaluation = self._evaluate()
        self.record = replace(self.record, initial_eval_loss=evaluation.loss)
        unread: UpdateResult | None = None
        self.window.resume()
        for batch in self.train_loader.batches(self.record.batches, self.record.updates):
            result = self._update(batch)
            self._refuse_non_finite(unread)  # one update late, so that the device is never idle
            unread = result
            at_end = self.horizon.is_reached(self.record)
            if at_end or self._is_multiple(result, self.config.log_every_steps):
                self._refuse_non_finite(result)
                self._log(result)
            evaluate_now = at_end or self._evaluation_is_due(result)
            save_now = at_end or self._save_is_due(result, evaluate_now)
            if evaluate_now or save_now:
                self._refuse_non_finite(unread)
                self.window.pause()
                if evaluate_now:
                    evaluation = self._evaluate()
                if save_now:
                    self._save()
                self.window.resume()
            if at_end:
                break
        self.progress.close()
        seconds = time.perf_counter() - started
        return Training(
            evaluation, self.record, self.train_loss, seconds, self.window.total_seconds
        )

    def _update(self, batch: UpdateBatch) -> UpdateResult | None:
        """One update; none for a batch in which no token is predicted."""
        result = None
        if batch.masked_count:
            factor = learning_rate_factor(
                self.record.updates,
                self.horizon.updates,
                self.config.warmup_steps,
                self.config.schedule,
            )
            result = apply_update(
                self.model,
                self.optimizer,
                batch,
                learning_rate=self.config.learning_rate * factor,
                max_grad_norm=self.config.max_grad_norm,
                seed=self.seed,
                compute=self.compute,
            )
            self.window.add(result, batch)
            self.masking_rate = batch.masking_rate
            self.progress.advance()
        self.record = replace(
            self.record,
            batches=self.record.batches + 1,
            updates=self.record.updates + (result is not None),
            tokens=self.record.tokens + batch.token_count,
        )
        return result

    def _refuse_non_finite(self, result: UpdateResult | None) -> None:
        if result is not None and result.is_non_finite():
            self.progress.close()
            raise RunFailed(
                f"near update {self.record.updates}: the gradient is not finite (loss sum "
                f"{result.loss_sum.item()}, gradient norm {result.grad_norm.item()}).\n"
                "The weights were left as they were before it. Usual remedies: a smaller "
                "train.learning_rate, train.warmup_steps, runtime.precision=fp32."
            )

    def _log(self, result: UpdateResult | None) -> None:
        window = self.window
        if result is None or window.masked_count == 0:
            return
        loss = window.loss_sum.item() / window.masked_count  # waits for the device
        speed = window.tokens / window.seconds
        self.train_loss = loss
        self.progress.show(loss, perplexity(loss), speed)
        figures = {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/grad_norm": result.grad_norm.item(),
            "train/masking_rate": self.masking_rate,
            "train/tokens_per_second": speed,
        }
        self.tracker.log(self.record.updates, self._epoch(), figures)
        window.restart()

    def _epoch(self) -> float:
        return self.record.batches / self.train_loader.order.batches_per_epoch

    def _is_multiple(self, result: UpdateResult | None, steps: int) -> bool:
        """Whether this batch made the update count a multiple of `steps`."""
        return result is not None and self.record.updates % steps == 0

    def _evaluation_is_due(self, result: UpdateResult | None) -> bool:
        if self.eval_every_steps is not None:
            return self._is_multiple(result, self.eval_every_steps)
        return self.record.batches % self.train_loader.order.batches_per_epoch == 0

    def _save_is_due(self, result: UpdateResult | None, evaluate_now: bool) -> bool:
        if self.config.save_every_steps is not None:
            return self._is_multiple(result, self.config.save_every_steps)
        return evaluate_now

    def _evaluate(self) -> Evaluation:
        result = evaluate(self.model, self.eval_loader, self.compute, self.progress)
        figures = {"eval/loss": result.loss, "eval/perplexity": result.perplexity}
        self.tracker.log(self.record.updates, self._epoch(), figures)
        if result.masked_count and not math.isfinite(result.loss):
            self.progress.close()
            raise RunFailed(
                f"update {self.record.updates}: the evaluation's loss is {result.loss}.\n"
                "The weights hold inf or nan, or the forward pass overflows: try "
                "runtime.precision=fp32, and look at what the run started from."
            )
        best = self.record.best_eval_loss
        if best is None or result.loss < best:
            self.record = replace(self.record, best_eval_loss=result.loss)
        self.progress.line(
            f"evaluation  update {self.record.updates:,}  loss {shown(result.loss)}  "
            f"perplexity {shown(result.perplexity)} ± {shown(result.perplexity_standard_error)}"
        )
        return result

    def _save(self) -> None:
        if self.config.keep_checkpoints:
            folder = self.run_dir / "checkpoints" / f"step_{self.record.updates}"
            save_state(folder, self.model, self.optimizer, self.record)
            remove_old(self.run_dir, self.config.keep_checkpoints)
