"""The machine that a run uses."""

from dataclasses import dataclass
from enum import Enum

from mlmlab.schema import setting


class Device(Enum):
    """Where the model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Precision(Enum):
    """The arithmetic of the forward pass; weights and moments stay fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Parallel(Enum):
    """How several processes share a run."""

    DDP = "ddp"
    FSDP = "fsdp"


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The machine."""

    device: Device = Device.AUTO
    """auto: cuda where there is one, else cpu. mps: the GPU of a Mac; it has not been tried."""
    precision: Precision = Precision.AUTO
    """auto: bf16 where the device computes in it natively and the model is 512 wide or more, else
    fp32. fp16 scales its losses, and leaves out steps whose gradient overflows."""
    tf32: bool = False
    """Whether fp32 matrix products on CUDA may round their factors to 10 bits: faster."""
    cuda_graphs: bool = True
    """Whether a training step on CUDA is recorded once as a CUDA graph and then replayed: the same
    arithmetic without the time that Python needs to launch it. Where batches have no padding,
    documents see each other, and there is one process; else steps run as if it were false."""
    compile: bool = False
    """Whether torch.compile fuses the operations of a training step, in the same cases: faster,
    after up to a minute of compilation; rounding and dropout noise are not those without it."""
    parallel: Parallel = Parallel.DDP
    """How the processes that torchrun starts share a run. ddp: each has the model, and a part of
    every batch. fsdp: each has a part of both; less memory for more traffic. The results and the
    checkpoints are the same."""
    processes: int | None = setting(None, at_least=1)
    """Processes that the command starts itself, on this machine; null: one, or torchrun's."""
    deterministic: bool = False
    """Only algorithms with the same bits every time; on CUDA slower. CPU runs have them anyway."""
    threads: int | None = setting(None, at_least=1)
    """CPU threads of PyTorch; null: as many as it likes."""
