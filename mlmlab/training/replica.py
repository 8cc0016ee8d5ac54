"""The model in this process: alone, or one of DDP's replicas; sharding.py has the other form."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mlmlab.model import MaskedLanguageModel
from mlmlab.processes import World
from mlmlab.training.precision import Compute


class Replica:
    """A model, and how its gradients and its parts in other processes come together.

    Here every process has all of it. Whatever needs a whole weight, gradient or moment asks the
    replica, which alone knows where they are.
    """

    def __init__(self, model: MaskedLanguageModel, world: World, compute: Compute) -> None:
        self.model = model
        """The encoder: the names, the parameters and, in `evaluating`, the forward pass."""
        self.world = world
        self.compute = compute
        self.trained: nn.Module = self._trained()
        """What a training step calls: its backward pass averages gradients over the processes."""

    def _trained(self) -> nn.Module:
        model = self.model.to(self.compute.device)
        if not self.world.is_distributed:
            return model
        return DistributedDataParallel(
            model,
            device_ids=[self.compute.device] if self.compute.is_cuda else None,
            gradient_as_bucket_view=True,
        )

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """The context of a backward pass: gradients meet in an update's last one only."""
        if isinstance(self.trained, DistributedDataParallel) and not is_last:
            context: AbstractContextManager[object] = self.trained.no_sync()
            return context
        return nullcontext()

    def gradients(self) -> dict[str, torch.Tensor]:
        """What this process has of the gradient, by the names of the parameters that train."""
        named = self.model.named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None}

    def norm(self, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The whole gradient's norm, an fp32 scalar with the same bits in every process."""
        return torch.nn.utils.get_total_norm(list(gradients.values()))

    @contextmanager
    def evaluating(self) -> Iterator[MaskedLanguageModel]:
        """The model, for forward passes alone. Every process makes as many of them."""
        yield self.model

    def whole(self, part: torch.Tensor) -> torch.Tensor | None:
        """A weight or moment, put together on the host of the first process; None in the others.

        Every process calls it with its own part of the same tensor.
        """
        return part.detach().cpu() if self.world.is_first else None

    def part(self, whole: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """What this process keeps of a parameter's weights or of its moments, on its device."""
        return whole.to(parameter.device)

    def whole_model(self) -> MaskedLanguageModel | None:
        """The model with all of its weights in the first process; None in the others."""
        return self.model if self.world.is_first else None
