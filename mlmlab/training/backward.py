"""Forward and backward pass of a micro-batch: launched from Python, or replayed as a CUDA graph.

A step of DistilRoBERTa on CUDA is about 550 kernels. For 8 rows of 128 tokens in bf16, an H200
computes them in 4 ms, while Python takes 16 ms to launch them (benchmarks/results). A graph is the
same kernels, recorded once and launched together.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mlmlab.data.batch import MicroBatch
from mlmlab.errors import Code, UserError
from mlmlab.runtime.devices import Compute

Loss = Callable[[nn.Module, MicroBatch], torch.Tensor]
"""The sum of a micro-batch's losses, an fp32 scalar; the micro-batch is on the device."""
_MOST_GRAPHS = 4
"""Each keeps its gradients. Full micro-batches have one shape, the last of an epoch another."""
_WARM_UP = 3
"""Passes before the recording, in which libraries allocate and choose their kernels."""


class Backward:
    """Adds a micro-batch's gradient to the parameters'."""

    def __init__(self, model: nn.Module, compute: Compute, loss: Loss) -> None:
        self.model = model
        self.compute = compute
        self.loss = loss
        # Gradient checkpointing reads the state of the random generator, which no graph can.
        self.replays = compute.cuda_graphs and not getattr(model, "gradient_checkpointing", False)
        """Whether micro-batches of a fixed shape are replayed."""
        self._fused_loss = loss
        if compute.compile:
            # Inductor's hints about its own choices are nothing that the user can act on.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._inductor")
            self._fused_loss = torch.compile(loss, dynamic=False)
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}

    def __call__(
        self, micro: MicroBatch, *, scale: float, divisor: float, seed: int
    ) -> torch.Tensor:
        """The gradient of the loss times `scale`, divided by `divisor`.

        Args:
            seed: of the dropout noise.

        Returns:
            The loss, undivided: an fp32 scalar.
        """
        graph = self._graph_for(micro) if self.replays and micro.has_fixed_shape else None
        torch.manual_seed(seed)  # after the recording, which draws noise, too
        if graph is not None:
            return graph.replay(micro, scale / divisor)
        loss = self._loss(micro.to(self.compute.device))
        (loss * (scale / divisor)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _loss(self, micro: MicroBatch) -> torch.Tensor:
        loss = self._fused_loss if micro.has_fixed_shape else self.loss
        with self.compute.autocast():
            total = loss(self.model, micro)
        if not (isinstance(total, torch.Tensor) and total.shape == () and total.requires_grad):
            raise UserError.of(
                "objective.name",
                code=Code.INVALID,
                found=f"a loss that is {_described(total)}",
                expected="the sum of the losses: an fp32 scalar, with a gradient",
                remedy="return losses.sum(), say",
            )
        return total

    def _graph_for(self, micro: MicroBatch) -> "_Graph | None":
        shape = (micro.masked.input_ids.shape, micro.masked.positions.shape)
        if shape not in self._graphs and len(self._graphs) < _MOST_GRAPHS:
            self._graphs[shape] = self._record(micro.to(self.compute.device))
        return self._graphs.get(shape)

    def _record(self, micro: MicroBatch) -> "_Graph":
        """Records the pass for a shape; the gradients there are stay as they are."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        earlier = [p.grad for p in parameters]
        self.model.zero_grad(set_to_none=True)
        scale = torch.ones((), device=self.compute.device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                (self._loss(micro) * scale).backward()  # type: ignore[no-untyped-call]
                self.model.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # The thread that prepares batches allocates page-locked memory meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            loss = self._loss(micro)
            (loss * scale).backward()  # type: ignore[no-untyped-call]
        # Detached: autograd's nodes, if anything kept them, would take part in the next recording.
        recorded = _Graph(graph, micro, scale, loss.detach(), parameters)
        for parameter, gradient in zip(parameters, earlier, strict=True):
            parameter.grad = gradient
        return recorded


def _described(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    gradient = "" if value.requires_grad else ", without a gradient"
    return f"a tensor, {str(value.dtype).removeprefix('torch.')} {list(value.shape)}{gradient}"


@dataclass(eq=False)
class _Graph:
    """A recorded pass: it reads and writes the same memory each time."""

    graph: torch.cuda.CUDAGraph
    micro: MicroBatch
    scale: torch.Tensor
    loss: torch.Tensor
    parameters: list[nn.Parameter]

    def __post_init__(self) -> None:
        gradients = [p.grad for p in self.parameters]
        self.parameters = [p for p in self.parameters if p.grad is not None]
        self.gradients = [gradient for gradient in gradients if gradient is not None]

    def replay(self, micro: MicroBatch, scale: float) -> torch.Tensor:
        """The same pass for another micro-batch of this shape."""
        for there, here in zip(self.micro.masked[:3], micro.masked[:3], strict=True):
            there.copy_(here, non_blocking=True)
        self.scale.fill_(scale)
        pairs = [(p.grad, own) for p, own in zip(self.parameters, self.gradients, strict=True)]
        # What this graph has left there in the step's last micro-batch is overwritten now.
        sums = [g.clone() if g is own else g for g, own in pairs if g is not None]
        self.graph.replay()
        if sums:
            torch._foreach_add_(sums, self.gradients)
        for parameter, gradient in zip(self.parameters, sums or self.gradients, strict=True):
            parameter.grad = gradient
        return self.loss
