"""Which device, and which arithmetic on it."""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from mlmlab.errors import UserError
from mlmlab.training.config import Device, MaskOn, Precision, RuntimeConfig


@dataclass(frozen=True)
class Compute:
    """A device and the precision of the forward pass. Weights, moments and losses are fp32."""

    device: torch.device
    precision: Precision
    """Never AUTO."""

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.precision is Precision.FP32:
            return nullcontext()
        kind = torch.float16 if self.precision is Precision.FP16 else torch.bfloat16
        return torch.autocast(self.device.type, kind)

    def __str__(self) -> str:
        if self.is_cuda:
            name = f"cuda ({torch.cuda.get_device_name(self.device)})"
        else:
            threads = torch.get_num_threads()
            name = f"cpu ({threads} thread{'s' if threads > 1 else ''})"
        return f"{name}, {self.precision.value}"


def resolve(config: RuntimeConfig, local_rank: int = 0) -> Compute:
    """Turns `auto` into what this machine has, and sets what PyTorch keeps for the whole process:
    threads, deterministic algorithms, TF32.

    Args:
        local_rank: the number of the process on this machine, and of its CUDA device.

    Raises:
        UserError: cuda was asked for and there is none, or a choice that needs it.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    use_cuda = uses_cuda(config)
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    _check_masking_place(config, device)
    precision = config.precision
    if precision is Precision.AUTO:
        precision = Precision.BF16 if _native_bf16(device) else Precision.FP32
    return Compute(device, precision)


def uses_cuda(config: RuntimeConfig) -> bool:
    """Whether the run is on CUDA.

    Raises:
        UserError: it should be, and there is no such device.
    """
    there = torch.cuda.is_available()
    if config.device is Device.CUDA and not there:
        raise UserError.of(
            "runtime.device",
            found="cuda, but PyTorch sees no CUDA device",
            expected="a CUDA device and a CUDA build of PyTorch",
            remedy="runtime.device=auto, or install PyTorch for CUDA",
        )
    return there and config.device is not Device.CPU


def _check_masking_place(config: RuntimeConfig, device: torch.device) -> None:
    if config.mask_on is MaskOn.CPU:
        return
    is_there = importlib.util.find_spec("triton") is not None
    is_simulated = os.environ.get("TRITON_INTERPRET") == "1"
    if is_there and (device.type == "cuda" or is_simulated):
        return
    raise UserError.of(
        "runtime.mask_on",
        found=f"device, which is {device.type}" + ("" if is_there else ", and Triton is missing"),
        expected="cpu; or a CUDA device and the package triton (part of PyTorch's CUDA builds)",
        remedy="runtime.mask_on=cpu",
    )


def _native_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed and not emulated: CUDA sm80 on, CPUs with AMX or AVX512-bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
