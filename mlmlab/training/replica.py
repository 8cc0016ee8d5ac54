"""The model in this process: alone, or one of DDP's replicas."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mlmlab.model import MaskedLanguageModel
from mlmlab.processes import World
from mlmlab.training.precision import Compute


class Replica:
    """A model and how its gradients come together."""

    def __init__(self, model: MaskedLanguageModel, world: World, compute: Compute) -> None:
        self.model = model.to(compute.device)
        self.world = world
        self.compute = compute
        self.trained: nn.Module = model
        """What a training step calls: its backward pass averages gradients over the processes."""
        if world.is_distributed:
            self.trained = DistributedDataParallel(
                model,
                device_ids=[compute.device] if compute.is_cuda else None,
                gradient_as_bucket_view=True,
            )

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """The context of a backward pass: gradients meet in an update's last one only."""
        if isinstance(self.trained, DistributedDataParallel) and not is_last:
            context: AbstractContextManager[object] = self.trained.no_sync()
            return context
        return nullcontext()

    def gradients(self) -> list[torch.Tensor]:
        """Those of the parameters that are trained."""
        return [p.grad for p in self.model.parameters() if p.grad is not None]
