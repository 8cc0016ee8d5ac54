"""A step whose gradient is not finite: what is kept of it, so that it can be looked at again."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlmlab.data.blocks import Order
from mlmlab.data.loader import StepBatch
from mlmlab.runtime.distributed import Ranks
from mlmlab.training.state import ProgressRecord
from mlmlab.training.step import StepResult


@dataclass(frozen=True, eq=False)
class Attempt:
    """A step that was tried."""

    before: ProgressRecord
    """How far the run was before it."""
    batch: StepBatch
    result: StepResult

    @property
    def step(self) -> int:
        """The step's number, counted from 1."""
        return self.before.steps + 1


def failure_folder(run_dir: Path, step: int) -> Path:
    """Where a failed step is kept."""
    return run_dir / "failures" / f"step_{step}"


def write_failure(
    attempt: Attempt,
    order: Order,
    ranks: Ranks,
    run_dir: Path,
    save: Callable[[Path], None],
) -> str:
    """Keeps a step in failures/step_N: the state before it, and batch.json.

    Args:
        save: writes the state to a folder; every process calls it.

    Returns:
        The message for the user.
    """
    loss_sum = math.fsum(ranks.gather(attempt.result.loss_sum.item()))
    loss, grad_norm = loss_sum / attempt.batch.loss_weight, attempt.result.grad_norm.item()
    folder = failure_folder(run_dir, attempt.step)
    _, examples = order.batch(attempt.batch.number)
    content = {
        "step": attempt.step,
        "batch": attempt.batch.number,
        "epoch": attempt.batch.epoch,
        "loss": _strict(loss),
        "grad_norm": _strict(grad_norm),
        "masked_tokens": attempt.batch.masked_count,
        "example_ids": examples.tolist(),
    }
    try:
        save(folder)
        if ranks.is_rank_zero:
            text = json.dumps(content, indent=2) + "\n"
            (folder / "batch.json").write_text(text, encoding="utf-8")
    except OSError as error:
        return f"{describe(attempt, loss, grad_norm)}\nNothing could be kept of it: {error}"
    return (
        f"{describe(attempt, loss, grad_norm)}\n"
        f"Its examples and the state before it are in {folder}. To look at it again:\n"
        f"  python -m mlmlab.train resume={run_dir} debug=replay debug.step={attempt.step}\n"
        "Usual remedies: a smaller train.learning_rate, train.warmup_steps, a\n"
        "train.max_grad_norm, runtime.precision=fp32."
    )


def describe(attempt: Attempt, loss: float, grad_norm: float) -> str:
    """What went wrong, in words."""
    return (
        f"step {attempt.step}: loss {loss:g}, gradient norm {grad_norm:g}: not finite.\n"
        "The weights are as they were before it."
    )


def _strict(value: float) -> float | str:
    """JSON has no nan or inf."""
    return value if math.isfinite(value) else str(value)
