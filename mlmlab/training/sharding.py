"""runtime.parallel=fsdp: weights, gradients and moments in shards, one in each process.

PyTorch's fully_shard (FSDP2; Zhao et al. 2023, "PyTorch FSDP", and Rajbhandari et al. 2020, "ZeRO",
stage 3) cuts every parameter along its first dimension. A layer's weights are gathered before its
forward and once more before its backward pass and given up after each; its gradients are averaged
and dealt out as soon as they are there. Between updates a process holds 1/N of everything.

The arithmetic is that of DDP: fp32 weights are gathered, and autocast rounds them as it does there,
so that the numbers are the same to the order of a sum. (FSDP's own mixed precision would gather
half as many bytes, but compute norms and embeddings in half precision, too.)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mlmlab.model import MaskedLanguageModel
from mlmlab.training.replica import Replica


class ShardedReplica(Replica):
    """A model of which each process keeps a part.

    Every forward and backward pass is a meeting of all processes, so that one without rows of its
    own takes part with an empty micro-batch: it hands over its shards of the weights, and takes
    its share of the others' gradients. Parameters, their gradients and moments are DTensors: the
    whole by shape, the shard in memory.
    """

    def _trained(self) -> nn.Module:
        # The mesh is named: a run on CPUs would otherwise take a CUDA device that is there.
        mesh = init_device_mesh(self.compute.device.type, (self.world.size,))
        for layer in self.model.layers:
            fully_shard(layer, mesh=mesh)  # moves it to the device, one layer after the other
        # The rest is one group. The token table stands in it once, for both ends of the model:
        # forward begins with it and backward, too, so that it stays gathered between them.
        return fully_shard(self.model, mesh=mesh)  # type: ignore[return-value]  # in place

    @property
    def _shards(self) -> FSDPModule:
        """The model's other face: fully_shard has made it an FSDPModule."""
        assert isinstance(self.model, FSDPModule)
        return self.model

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """As DDP's no_sync: until an update's last backward pass each process sums up its own
        gradients, which it keeps whole. Reducing each would save their memory, for that much more
        traffic. In the last one a process without rows hands in what it has summed up before."""
        self._shards.set_requires_gradient_sync(is_last)
        yield

    def gradients(self) -> dict[str, torch.Tensor]:
        """The shards of this process; some are empty where a parameter has few rows."""
        return {name: _local(gradient) for name, gradient in super().gradients().items()}

    def norm(self, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The norm of the shards' norms, which every process takes of the same numbers."""
        mine = super().norm(gradients)
        norms = [torch.empty_like(mine) for _ in range(self.world.size)]
        dist.all_gather(norms, mine)
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    @contextmanager
    def evaluating(self) -> Iterator[MaskedLanguageModel]:
        """Weights are gathered a layer at a time, as in training, so that an evaluation needs no
        more memory than an update does; the traffic is that of its forward passes."""
        try:
            yield self.model
        finally:
            # Embeddings and head wait for a backward pass, which does not come.
            self._shards.reshard()

    def whole(self, part: torch.Tensor) -> torch.Tensor | None:
        """For a moment, every process has all of this one tensor; the first keeps it, on its host.

        A moment's `step` is in no shards.
        """
        return super().whole(part.full_tensor() if isinstance(part, DTensor) else part)

    def part(self, whole: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """Every process has read the same whole, and takes its shard of it without a word."""
        tensor = super().part(whole, parameter)
        if tensor.shape != parameter.shape:  # a moment's `step`
            return tensor
        assert isinstance(parameter, DTensor)
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)

    def whole_model(self) -> MaskedLanguageModel | None:
        """A copy, on the host."""
        weights = {name: self.whole(p) for name, p in self.model.named_parameters()}
        if not self.world.is_first:
            return None
        with torch.device("meta"):
            model = MaskedLanguageModel(self.model.config)
        model.load_state_dict(weights, assign=True)
        return model


def _local(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()
