"""One update, in one visible function."""

from dataclasses import dataclass

import torch

from mlmlab.loader import MicroBatch, UpdateBatch
from mlmlab.model import MaskedLanguageModel, token_losses
from mlmlab.random import Domain, derive_seed
from mlmlab.training.precision import Compute


@dataclass(frozen=True, eq=False)
class UpdateResult:
    """What an update leaves behind, still on the device: reading it waits for the device."""

    loss_sum: torch.Tensor
    """fp32 scalar: negative log-likelihood, summed over the predicted tokens."""
    grad_norm: torch.Tensor
    """fp32 scalar: the whole gradient's norm before clipping."""
    non_finite: torch.Tensor
    """fp32 scalar on the host: 1 if the gradient held inf or nan, and the weights were left as
    they were. On CUDA it is on its way until `ready`."""
    ready: torch.cuda.Event | None

    def is_non_finite(self) -> bool:
        """Waits for this update, but not for what was queued after it."""
        if self.ready is not None:
            self.ready.synchronize()
        return bool(self.non_finite)


def micro_batch_loss(
    model: MaskedLanguageModel, micro: MicroBatch, compute: Compute
) -> torch.Tensor:
    """The sum of the micro-batch's token losses, an fp32 scalar."""
    device = compute.device
    with compute.autocast():
        logits = model(**micro.model_inputs(device))
    return token_losses(logits, micro.labels.to(device, non_blocking=True)).sum()


def apply_update(
    model: MaskedLanguageModel,
    optimizer: torch.optim.Optimizer,
    batch: UpdateBatch,
    *,
    learning_rate: float,
    max_grad_norm: float,
    seed: int,
    compute: Compute,
) -> UpdateResult:
    """Backward over the micro-batches, then clip, check, update.

    The loss is the mean over the predicted tokens of the whole update: each micro-batch's sum is
    divided by the update's count, so that accumulation changes nothing but rounding.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    loss_sum = torch.zeros((), device=compute.device)
    for number, micro in enumerate(batch.micro_batches):
        # Dropout noise belongs to the micro-batch, not to what was drawn before it.
        torch.manual_seed(derive_seed(seed, Domain.DROPOUT, batch.number, number))
        loss = micro_batch_loss(model, micro, compute)
        (loss / batch.masked_count).backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach()
    parameters = list(model.parameters())
    grad_norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
    if max_grad_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, grad_norm)
    non_finite = 1.0 - torch.isfinite(grad_norm).float()
    optimizer.found_inf = non_finite  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    ready = None
    if non_finite.is_cuda:
        on_host = torch.empty((), pin_memory=True)
        non_finite = on_host.copy_(non_finite, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()
    return UpdateResult(loss_sum, grad_norm, non_finite, ready)
