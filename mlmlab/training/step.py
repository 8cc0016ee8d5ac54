"""One step, in one visible function."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mlmlab.data.loader import StepBatch
from mlmlab.random import Seeds
from mlmlab.training.optimizer import scales_and_suppresses
from mlmlab.training.parallel import Replica

LEAST_LOSS_SCALE = 2.0**-24
"""fp16's smallest number. A gradient that is not finite with less is not an overflow."""


@dataclass(frozen=True, eq=False)
class StepResult:
    """The figures of a step, still on the device: reading one waits for the device."""

    loss_sum: torch.Tensor
    """fp32 scalar: negative log-likelihood, summed over this process's predicted tokens."""
    grad_norm: torch.Tensor
    """fp32 scalar: the full gradient's norm before clipping."""
    non_finite: torch.Tensor
    """fp32 scalar on the host: 1 if the gradient held inf or nan, in this step or in one before
    it, and the weights were left as they were. On CUDA it is on its way until `ready`."""
    ready: torch.cuda.Event | None
    schedule_factor: float
    """What the learning rates were multiplied by."""
    overflowed: bool = False
    """Whether the step was left out because the scaled fp16 gradient overflowed."""

    def is_non_finite(self) -> bool:
        """Waits for this step, but not for what was queued after it."""
        if self.ready is not None:
            self.ready.synchronize()
        return bool(self.non_finite)


def train_step(
    replica: Replica,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: StepBatch,
    *,
    schedule_factor: float,
    max_grad_norm: float,
    seeds: Seeds,
    suppressed: torch.Tensor,
    loss_scale: float | None = None,
) -> StepResult:
    """Backward over the micro-batches, then unscale, clip, check, step.

    The loss is the mean over the predicted tokens of the full step, or what the objective puts in
    place of their number: each micro-batch's sum is divided by that of the full step, so that
    accumulation changes nothing but rounding. DDP and FSDP
    average gradients over the processes, hence the factor of their number.

    Args:
        schedule_factor: a group's learning rate is the one it was built with, times this, times its
            `rate_factor`.
        suppressed: fp32 scalar on the device, 1 once a gradient was not finite: then neither this
            step nor a later one reaches the weights, whenever the host looks.
        loss_scale: for fp16, a power of two; the host then waits for the gradient's norm. None: the
            loss is not scaled, and an overflow is a failure.
    """
    replica.model.train()
    replica.model.zero_grad(set_to_none=True)
    ranks, device = replica.ranks, replica.compute.device
    factor = ranks.size * (1.0 if loss_scale is None else loss_scale)
    loss_sum = torch.zeros((), device=device)
    for number, micro in enumerate(batch.micro_batches):
        with replica.accumulating(is_last=number == len(batch.micro_batches) - 1):
            loss_sum += replica.backward(
                micro,
                scale=factor,
                divisor=batch.loss_weight,
                # Dropout noise belongs to the micro-batch, not to what was drawn before it.
                seed=seeds.dropout_noise(batch.number, number, ranks.rank),
            )

    gradients = replica.gradients()
    if loss_scale is not None:
        torch._foreach_mul_(list(gradients.values()), 1.0 / loss_scale)
    grad_norm = replica.norm(gradients)
    overflowed = loss_scale is not None and not torch.isfinite(grad_norm)
    # A loss that is not finite itself cannot be helped by another scale, nor a gradient that
    # overflows even with a very small one.
    is_helped = loss_scale is not None and loss_scale >= LEAST_LOSS_SCALE
    if overflowed and is_helped and all(ranks.gather(bool(torch.isfinite(loss_sum)))):
        nothing = torch.zeros(())
        return StepResult(loss_sum, grad_norm, nothing, None, schedule_factor, overflowed=True)
    suppressed.copy_(torch.maximum(suppressed, 1.0 - torch.isfinite(grad_norm).float()))
    is_left_to_device = scales_and_suppresses(optimizers)
    is_applied = is_left_to_device or not suppressed.item()  # the host waits for the gradient
    scale = None  # what the gradient is divided by
    if max_grad_norm > 0 and is_left_to_device:
        scale = ((grad_norm + 1e-6) / max_grad_norm).clamp(min=1.0)  # as clip_grads_with_norm_
    elif max_grad_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(replica.model.parameters(), max_grad_norm, grad_norm)
    for optimizer in optimizers:
        if is_left_to_device:
            optimizer.found_inf = suppressed  # type: ignore[attr-defined]
            optimizer.grad_scale = scale  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule_factor * group["rate_factor"]
        if is_applied:
            optimizer.step()
    return StepResult(loss_sum, grad_norm, *_on_host(suppressed), schedule_factor)


def _on_host(flag: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy on the host, and when it is there, without waiting for it."""
    if not flag.is_cuda:
        return flag.clone(), None
    copy = torch.empty((), pin_memory=True).copy_(flag, non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record()
    return copy, ready
