"""Which device, and which arithmetic on it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from mlmlab.errors import UserError
from mlmlab.training.config import Device, Precision, RuntimeConfig


@dataclass(frozen=True)
class Compute:
    """A device and the precision of the forward pass. Weights, moments and losses are fp32."""

    device: torch.device
    precision: Precision
    """Never AUTO."""

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.precision is Precision.FP32:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def __str__(self) -> str:
        if self.device.type == "cuda":
            name = f"cuda ({torch.cuda.get_device_name(self.device)})"
        else:
            threads = torch.get_num_threads()
            name = f"cpu ({threads} thread{'s' if threads > 1 else ''})"
        return f"{name}, {self.precision.value}"


def resolve(config: RuntimeConfig) -> Compute:
    """Turns `auto` into what this machine has, and sets the thread count.

    Raises:
        UserError: cuda was asked for and there is none.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    cuda = torch.cuda.is_available()
    if config.device is Device.CUDA and not cuda:
        raise UserError.of(
            "runtime.device",
            found="cuda, but PyTorch sees no CUDA device",
            expected="a CUDA device and a CUDA build of PyTorch",
            remedy="runtime.device=auto, or install PyTorch for CUDA",
        )
    use_cuda = cuda and config.device is not Device.CPU
    device = torch.device("cuda" if use_cuda else "cpu")
    precision = config.precision
    if precision is Precision.AUTO:
        precision = Precision.BF16 if _native_bf16(device) else Precision.FP32
    return Compute(device, precision)


def _native_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed and not emulated: CUDA sm80 on, CPUs with AMX or AVX512-bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
