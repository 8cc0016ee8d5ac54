"""Which device, and which arithmetic on it."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from mlmlab.errors import Code, UserError
from mlmlab.runtime.config import Device, Precision, RuntimeConfig
from mlmlab.system import keeping_freed_memory

_BF16_HIDDEN_SIZE = 512
"""From this width on, `auto` may be bf16. On a CPU with AVX512-bf16, bf16 took 1.4 times as long as
fp32 at 128, where the casts cost more than the matrix products gain, and less than half as long at
768; in between nothing was measured."""


@dataclass(frozen=True)
class Compute:
    """A device and the precision of the forward pass. Weights, moments and losses are fp32."""

    device: torch.device
    precision: Precision
    """Never AUTO."""
    cuda_graphs: bool = False
    """Whether steps are replayed as CUDA graphs."""
    compile: bool = False
    """Whether torch.compile fuses their operations."""

    @property
    def fixes_shapes(self) -> bool:
        """Whether micro-batches need a fixed number of positions."""
        return self.cuda_graphs or self.compile

    @property
    def position_multiple(self) -> int:
        """What the number of a micro-batch's positions should be a multiple of.

        On the CPU memory that is freed is kept, and with any number of positions, blocks of ever
        other sizes come to lie between each other: memory grew for 75 steps and more. In half
        precision products are also compiled for each shape, and kept: a step took an eighth longer
        (benchmarks/NOTES.md).
        """
        return 32 if self.device.type == "cpu" else 1

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.type == "cuda"

    @property
    def is_emulated(self) -> bool:
        """Whether a CPU computes in a half precision that it has no instructions for: in bf16 some
        products took 200 times as long as in fp32, on a processor with AVX2."""
        if self.device.type != "cpu" or self.precision is Precision.FP32:
            return False
        return self.precision is Precision.FP16 or not has_native_bf16(self.device)

    @classmethod
    def for_model(
        cls, hidden_size: int, config: RuntimeConfig, device: torch.device, *, alone: bool = True
    ) -> "Compute":
        """Turns `runtime.precision=auto` into what is faster for a model of this width.

        Args:
            alone: whether no other process shares the run: then steps may be CUDA graphs.

        Raises:
            UserError: `runtime.compile` in several processes.
        """
        if config.compile and not alone:
            raise UserError.of(
                "runtime.compile",
                code=Code.CONFLICT,
                found="true, in a run of several processes",
                expected="one process",
                remedy="runtime.compile=false",
            )
        precision = config.precision
        if precision is Precision.AUTO:
            is_wide = hidden_size >= _BF16_HIDDEN_SIZE
            precision = Precision.BF16 if is_wide and has_native_bf16(device) else Precision.FP32
        cuda_graphs = config.cuda_graphs and alone and device.type == "cuda"
        return cls(device, precision, cuda_graphs, config.compile)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.precision is Precision.FP32:
            return nullcontext()
        kind = torch.float16 if self.precision is Precision.FP16 else torch.bfloat16
        return torch.autocast(self.device.type, kind)

    def __str__(self) -> str:
        if self.device.type == "mps":
            name = "mps"
        elif self.is_cuda:
            name = f"cuda ({torch.cuda.get_device_name(self.device)})"
        else:
            threads = torch.get_num_threads()
            name = f"cpu ({threads} thread{'s' if threads > 1 else ''})"
        return f"{name}, {self.precision.value}{', compiled' if self.compile else ''}"


@contextmanager
def torch_settings(config: RuntimeConfig, local_rank: int = 0) -> Iterator[torch.device]:
    """Sets PyTorch's process-wide settings as configured: threads, deterministic algorithms, TF32.

    On exit they are as before, and so are the random generators, which a training step seeds: a
    notebook that calls `mlmlab.run` keeps its own.

    Args:
        local_rank: the number of the process on this machine, and of its CUDA device.

    Yields:
        The device.

    Raises:
        UserError: cuda was asked for and there is none.
    """
    device = torch.device("cuda", local_rank) if uses_cuda(config) else _other_device(config)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    matmul_precision = torch.get_float32_matmul_precision()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if config.deterministic and workspace is None:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        _use_deterministic_algorithms(config.deterministic, warn_only=False)
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        memory = keeping_freed_memory() if device.type == "cpu" else nullcontext()
        with memory, torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield device
    finally:
        torch.set_num_threads(threads)
        _use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_float32_matmul_precision(matmul_precision)
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def _use_deterministic_algorithms(mode: bool, *, warn_only: bool) -> None:
    """As PyTorch's, which imports the compiler first, 0.6 s, even where nothing changes."""
    now = torch.are_deterministic_algorithms_enabled()
    if (mode, warn_only) != (now, torch.is_deterministic_algorithms_warn_only_enabled()):
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)


def uses_cuda(config: RuntimeConfig) -> bool:
    """Whether the run is on CUDA.

    Raises:
        UserError: it should be, and there is no such device.
    """
    there = torch.cuda.is_available()
    if config.device is Device.CUDA and not there:
        raise UserError.of(
            "runtime.device",
            code=Code.UNAVAILABLE,
            found="cuda, but PyTorch sees no CUDA device",
            expected="a CUDA device and a CUDA build of PyTorch",
            remedy="runtime.device=auto, or install PyTorch for CUDA",
        )
    return there and config.device not in (Device.CPU, Device.MPS)


def _other_device(config: RuntimeConfig) -> torch.device:
    """The CPU, or the GPU of a Mac.

    Raises:
        UserError: it should be the latter, and there is none.
    """
    if config.device is not Device.MPS:
        return torch.device("cpu")
    if not torch.backends.mps.is_available():
        raise UserError.of(
            "runtime.device",
            code=Code.UNAVAILABLE,
            found="mps, but PyTorch sees no such device",
            expected="a Mac with a GPU that PyTorch knows",
            remedy="runtime.device=auto",
        )
    return torch.device("mps")


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed and not emulated: CUDA sm80 on, CPUs with AMX or AVX512-bf16."""
    if device.type == "mps":
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
