"""The model in this process with `runtime.parallel=fsdp`: a part of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mlmlab.model import MaskedLanguageModel
from mlmlab.training.parallel import Replica


class ShardedReplica(Replica):
    """A model of which each process keeps a part. Its weights are those of rank 0; the others may
    have built theirs on the meta device.

    Every forward and backward pass is a meeting of all processes, so that one without rows of its
    own takes part with an empty micro-batch: it hands over its shards of the weights, and takes
    its share of the others' gradients. Parameters, their gradients and moments are DTensors: of
    the full shape, with the shard in memory.
    """

    def _trained(self) -> nn.Module:
        # The mesh is named: a run on CPUs would otherwise take a CUDA device that is there.
        mesh = init_device_mesh(self.compute.device.type, (self.ranks.size,))
        assert not list(self.model.buffers()), "which would be left empty"
        weights = dict(self.model.named_parameters())
        self.model.to("meta")
        for layer in self.model.layers:
            fully_shard(layer, mesh=mesh)
        # The rest is one group. The token table is in it once, for both ends of the model:
        # forward begins with it and backward, too, so that it stays gathered between them.
        fully_shard(self.model, mesh=mesh)
        self.model.to_empty(device=self.compute.device)
        for name, p in self.model.named_parameters():  # one after the other, from rank 0
            assert isinstance(p, DTensor)
            whole = (
                weights.pop(name)  # so that it is freed
                if self.ranks.is_rank_zero
                else torch.empty(p.shape, device=self.compute.device)
            )
            with torch.no_grad():
                p.copy_(distribute_tensor(whole, mesh, p.placements))
        return self.model

    @property
    def _shards(self) -> FSDPModule:
        """The model's other face: fully_shard has made it an FSDPModule."""
        assert isinstance(self.model, FSDPModule)
        return self.model

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """As DDP's no_sync: until a step's last backward pass each process sums up its own
        gradients, which it keeps unsharded. Reducing each would save their memory, at the cost of
        traffic. In the last one a process without rows hands in what it has summed up before."""
        self._shards.set_requires_gradient_sync(is_last)
        yield

    def gradients(self) -> dict[str, torch.Tensor]:
        """The shards of this process; some are empty where a parameter has few rows."""
        return {name: _local(gradient) for name, gradient in super().gradients().items()}

    def norm(self, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The norm of the shards' norms, which every process takes of the same numbers."""
        mine = super().norm(gradients)
        norms = [torch.empty_like(mine) for _ in range(self.ranks.size)]
        dist.all_gather(norms, mine)
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    @contextmanager
    def evaluating(self) -> Iterator[MaskedLanguageModel]:
        """Weights are gathered a layer at a time, as in training, so that an evaluation needs no
        more memory than a step does; the traffic is that of its forward passes."""
        try:
            yield self.model
        finally:
            # Embeddings and head wait for a backward pass, which does not come.
            self._shards.reshard()

    def unsharded(self, part: torch.Tensor) -> torch.Tensor | None:
        """For a moment, every process has all of this one tensor; the first keeps it, on its host.

        A moment's `step` is in no shards.
        """
        return super().unsharded(part.full_tensor() if isinstance(part, DTensor) else part)

    def part(self, whole: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """Every process has read the same tensor, and takes its shard without communication."""
        tensor = super().part(whole, parameter)
        if tensor.shape != parameter.shape:  # a moment's `step`
            return tensor
        assert isinstance(parameter, DTensor)
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)

    def unsharded_model(self) -> MaskedLanguageModel | None:
        """A copy, on the host."""
        weights = {name: self.unsharded(p) for name, p in self.model.named_parameters()}
        if not self.ranks.is_rank_zero:
            return None
        with torch.device("meta"):
            model = MaskedLanguageModel(self.model.config)
        model.load_state_dict(weights, assign=True)
        return model


def _local(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()
