"""The model in this process: alone, or one of DDP's replicas; sharding.py has the other form."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mlmlab.model import MaskedLanguageModel
from mlmlab.runtime.devices import Compute
from mlmlab.runtime.distributed import Ranks
from mlmlab.training.backward import Backward, Loss
from mlmlab.training.objective import masked_token_loss


class Replica:
    """A model, and how its gradients and its parts in other processes come together.

    Here every process has all of it. Whatever needs a full weight, gradient or moment asks the
    replica, which alone knows where they are.
    """

    def __init__(
        self,
        model: MaskedLanguageModel,
        ranks: Ranks,
        compute: Compute,
        loss: Loss = masked_token_loss,
    ) -> None:
        self.model = model
        """The encoder: the names, the parameters and, in `evaluating`, the forward pass."""
        self.ranks = ranks
        self.compute = compute
        self.trained: nn.Module = self._trained()
        """What a training step calls: its backward pass averages gradients over the processes."""
        self.backward = Backward(self.trained, compute, loss)

    def _trained(self) -> nn.Module:
        model = self.model.to(self.compute.device)
        if not self.ranks.is_distributed:
            return model
        return DistributedDataParallel(
            model,
            device_ids=[self.compute.device] if self.compute.is_cuda else None,
            gradient_as_bucket_view=True,
        )

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """The context of a backward pass: gradients meet in a step's last one only."""
        if isinstance(self.trained, DistributedDataParallel) and not is_last:
            context: AbstractContextManager[object] = self.trained.no_sync()
            return context
        return nullcontext()

    def gradients(self) -> dict[str, torch.Tensor]:
        """What this process has of the gradient, by the names of the parameters that train."""
        named = self.model.named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None}

    def norm(self, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The full gradient's norm, an fp32 scalar with the same bits in every process."""
        tensors = list(gradients.values())
        if self.compute.device.type != "cpu":
            return torch.nn.utils.get_total_norm(tensors)
        # The CPU's kernel for a norm takes three times as long as the one for a dot product.
        squares = [torch.dot(flat, flat) for flat in (g.flatten() for g in tensors)]
        return torch.stack(squares).sum().sqrt()

    @contextmanager
    def evaluating(self) -> Iterator[MaskedLanguageModel]:
        """The model, for forward passes alone. Every process makes as many of them."""
        yield self.model

    def unsharded(self, part: torch.Tensor) -> torch.Tensor | None:
        """A weight or moment, put together on the host of rank 0; None in the others.

        Every process calls it with its own part of the same tensor.
        """
        return part.detach().cpu() if self.ranks.is_rank_zero else None

    def part(self, whole: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """What this process keeps of a parameter's weights or of its moments, on its device."""
        return whole.to(parameter.device)

    def unsharded_model(self) -> MaskedLanguageModel | None:
        """The model with all of its weights on rank 0; None in the others."""
        return self.model if self.ranks.is_rank_zero else None
