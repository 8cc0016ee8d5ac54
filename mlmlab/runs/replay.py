"""One step of a run again, looked at closely. Nothing is written."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mlmlab.config import RunConfig
from mlmlab.data.loader import StepBatch
from mlmlab.errors import Code, RunFailed, UserError
from mlmlab.runs import terminal
from mlmlab.runs.resume import changes_of, fingerprint
from mlmlab.runs.setup import set_up_run
from mlmlab.runs.train import build_loop, horizon_of
from mlmlab.runtime.devices import Compute, torch_settings, uses_cuda
from mlmlab.runtime.distributed import process_group
from mlmlab.runtime.signals import Interruptions
from mlmlab.tracking.progress_bar import ProgressBar
from mlmlab.training.failure import Attempt, describe, failure_folder
from mlmlab.training.loop import Loop, Outputs
from mlmlab.training.parallel import Replica
from mlmlab.training.state import (
    DamagedCheckpoint,
    check_state,
    checkpoint_folders,
)


@dataclass(frozen=True)
class Replay:
    """A step that was repeated."""

    step: int
    """Counted from 1."""
    loss: float
    """Nats per predicted token."""


def replay(
    config: RunConfig, *, documents: Sequence[str] | None = None, quiet: bool = False
) -> Replay:
    """Repeats step `debug.step` of the run that `resume` names, from the state that was kept of
    it when it failed, or else from the newest checkpoint before it.

    Args:
        config: with `resume` and `debug=replay`.
        documents: the run's text, for data.source=documents.
        quiet: print nothing.

    Raises:
        UserError: there is no such step, or no state to repeat it from.
        RunFailed: its gradient is not finite, here as in the run.
    """
    assert config.resume is not None
    assert config.debug.step is not None
    run_dir, step = Path(config.resume), config.debug.step
    if_lost = "Nothing was written: the same command replays the step again."
    with (
        process_group(use_cuda=uses_cuda(config.runtime), if_lost=if_lost) as ranks,
        torch_settings(config.runtime, ranks.local_rank) as device,
    ):
        quiet = quiet or not ranks.is_rank_zero
        state = ranks.on_rank_zero(lambda: _state_before(config, run_dir, step))
        config, inputs = set_up_run(config, ranks, state, documents, quiet=quiet)
        compute = Compute.for_model(
            inputs.model.config.hidden_size,
            config.runtime,
            device,
            alone=not ranks.is_distributed,
        )
        bar = ProgressBar(0, quiet=quiet)
        bar.line(f"replaying step {step} of {run_dir}, from {state or 'its beginning'}")
        outputs = Outputs(
            run_dir=run_dir,
            bar=bar,
            tracker=None,
            tokenizer=inputs.tokenizer,
            fingerprint=fingerprint(config),
            interruptions=Interruptions(),
        )
        loop = build_loop(
            config, inputs, ranks, compute, horizon_of(config, inputs), [], outputs, state
        )
        batch = _advance(loop, step)
        loop.replica.backward.replays = False  # a graph calls no hooks
        with _watched(loop.replica.model) as first_module:
            attempt = Attempt(loop.record, batch, loop.attempt(batch))
        loss_sum = math.fsum(ranks.gather(attempt.result.loss_sum.item()))
        loss, grad_norm = loss_sum / batch.loss_weight, attempt.result.grad_norm.item()
        broken = not_finite(loop.replica)
        examples = loop.train_loader.order.batch(batch.number)[1].tolist()
        bar.line(terminal.replay(batch, loss, grad_norm, examples, first_module, broken))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise RunFailed(describe(attempt, loss, grad_norm))
        return Replay(step, loss)


def not_finite(replica: Replica) -> list[str]:
    """The parameters whose gradient is not finite in some process, the same in all of them."""
    gradients = replica.gradients()
    mine = {name for name, g in gradients.items() if not torch.isfinite(g).all()}
    anywhere = set().union(*replica.ranks.gather(mine))
    return [name for name in gradients if name in anywhere]


def _state_before(config: RunConfig, run_dir: Path, step: int) -> Path | None:
    """The nearest complete checkpoint before a step; None: there is none, and the run's beginning,
    which is always the same, takes its place."""
    changes_of(config)  # refuses those that would make it another run
    kept = failure_folder(run_dir, step)
    for folder in (kept, *reversed(checkpoint_folders(run_dir))):
        try:
            record = check_state(folder, fingerprint(config))
        except DamagedCheckpoint:
            continue
        if record.steps < step:
            return folder
    return None


def _advance(loop: Loop, step: int) -> StepBatch:
    """Applies the steps before a step, and returns its batch."""
    batches = loop.train_loader.batches(loop.record.batches, loop.record.steps)
    for batch in batches:
        is_over = loop.horizon.is_reached(loop.record)
        if is_over or (batch.loss_weight and loop.record.steps == step - 1):
            batches.close()
            break
        loop.advance(batch)
    if is_over:
        raise UserError.of(
            "debug.step",
            code=Code.INVALID,
            found=f"{step}, and the run ends with step {loop.record.steps}",
            expected="one of the run's steps",
            remedy=f"debug.step={loop.record.steps}",
        )
    return batch


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Notes the first module whose output is not finite, in a list that is empty until then."""
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, __: object, output: torch.Tensor) -> None:
            if not found and not torch.isfinite(output).all():
                found.append(name)

        return module.register_forward_hook(look)

    leaves = [(name, module) for name, module in model.named_modules() if name]
    handles = [watch(name, module) for name, module in leaves if not list(module.children())]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
