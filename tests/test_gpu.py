"""What only a CUDA device can show: precisions, nccl, equal bits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import _model

import mlmlab
from mlmlab.model import Family
from mlmlab.model.norm import ResidualNorm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
RUN = (
    "runtime.device=cuda",
    "data.limit=4000",
    "model.dropout=0.1",
    "train.max_steps=200",
    "train.warmup_steps=20",
    "train.log_every_steps=10",
    "eval.every_steps=100",
)


def losses(run_dir: Path) -> list[float]:
    """Training losses, one a log line."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [event["train/loss"] for event in map(json.loads, lines) if "train/loss" in event]


def weights(run_dir: Path) -> bytes:
    return (run_dir / "export" / "model.safetensors").read_bytes()


def trained(run_dir: Path, *overrides: str) -> list[float]:
    mlmlab.run(mlmlab.compose(*RUN, f"run_dir={run_dir}", *overrides), quiet=True)
    return losses(run_dir)


def test_the_precisions_agree_over_200_steps(tmp_path: Path) -> None:
    # Kernels of another precision draw other dropout noise.
    exact = trained(tmp_path / "fp32", "model.dropout=0", "runtime.precision=fp32")
    for precision in ("bf16", "fp16"):
        half = f"runtime.precision={precision}"
        rounded = trained(tmp_path / precision, "model.dropout=0", half)
        assert rounded == pytest.approx(exact, rel=0.01), precision


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(
    tmp_path: Path, precision: str
) -> None:
    exact = (f"runtime.precision={precision}", "runtime.deterministic=true")
    whole = trained(tmp_path / "whole", *exact, "train.save_every_steps=70")
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step_200")  # as if killed before it
    before = weights(tmp_path / "whole")
    mlmlab.run(mlmlab.compose(f"resume={tmp_path / 'whole'}"), quiet=True)
    assert losses(tmp_path / "whole") == whole
    assert weights(tmp_path / "whole") == before


def over_nccl(*overrides: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node=1", "-m", "mlmlab.train", *overrides]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_over_nccl_follows_the_run_without(tmp_path: Path, parallel: str) -> None:
    alone = trained(tmp_path / "alone", "runtime.precision=fp32")
    shared = ("runtime.precision=fp32", f"runtime.parallel={parallel}")
    over_nccl(*RUN, *shared, f"run_dir={tmp_path / 'nccl'}")
    assert losses(tmp_path / "nccl") == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_shards_in_half_precision_go_on_with_the_bits_of_the_uninterrupted_run(
    tmp_path: Path, precision: str
) -> None:
    run_dir = tmp_path / "run"
    exact = (f"runtime.precision={precision}", "runtime.deterministic=true")
    accumulated = ("train.micro_batch_size=12", "train.gradient_checkpointing=true")
    over_nccl(
        *RUN, *exact, *accumulated, "runtime.parallel=fsdp", "train.save_every_steps=70",
        f"run_dir={run_dir}",
    )  # fmt: skip
    whole, before = losses(run_dir), weights(run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step_200")  # as if killed before it
    over_nccl(f"resume={run_dir}")
    assert losses(run_dir) == whole
    assert weights(run_dir) == before
    alone = trained(tmp_path / "alone", *exact, *accumulated)
    assert whole == pytest.approx(alone, rel=1e-2)


@pytest.mark.parametrize(
    ("family", "residual"), [(Family.ROBERTA, torch.bfloat16), (Family.MODERNBERT, torch.float32)]
)
def test_the_residual_stream_is_in_half_precision_where_each_layer_normalizes_it(
    family: Family, residual: torch.dtype
) -> None:
    model = _model(family=family, layers=3).to("cuda")
    inputs: list[torch.dtype] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].dtype))
    ids = torch.arange(5, 29, device="cuda").view(3, 8)
    for half, expected in ((False, torch.float32), (True, residual)):
        inputs.clear()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            model(ids)
        assert inputs == [expected] * 3


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_norm_in_half_precision_is_that_of_fp32_rounded(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, plain = ResidualNorm(64, device="cuda"), torch.nn.LayerNorm(64, device="cuda")
    with torch.no_grad():
        for mine, theirs in zip(norm.parameters(), plain.parameters(), strict=True):
            theirs.copy_(mine.normal_())
    x = (torch.randn(1024, 64, device="cuda") + 3).to(kind).requires_grad_()
    exact_x = x.detach().float().requires_grad_()
    exact = plain(exact_x)
    with torch.autocast("cuda", torch.bfloat16):
        rounded = norm(x)
    assert rounded.dtype == torch.bfloat16
    direction = torch.randn(1024, 64, device="cuda").to(torch.bfloat16)
    (exact * direction).sum().backward()
    rounded.backward(direction)
    pairs = [(rounded, exact), (x.grad, exact_x.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(norm.parameters(), plain.parameters(), strict=True)]
    for one, other in pairs:
        assert (one - other).norm() / other.norm() < 2**-7
