"""What a run sets in PyTorch, and the arithmetic that runtime.precision=auto chooses."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from stopping import SMALLEST

import mlmlab
from mlmlab.errors import RunFailed
from mlmlab.runs.replay import replay
from mlmlab.runtime import devices
from mlmlab.runtime.config import Precision, RuntimeConfig
from mlmlab.runtime.devices import Compute

SHORT = (*SMALLEST, "train.max_steps=3", "train.warmup_steps=0", "eval.fill_mask=[]")
UNUSUAL = ("runtime.deterministic=true", "runtime.tf32=true", "runtime.threads=3")


def _state() -> dict[str, object]:
    """What belongs to the whole process."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "products": torch.get_float32_matmul_precision(),
        "generator": torch.get_rng_state().tolist(),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


@pytest.fixture(params=["as PyTorch starts", "of the user"])
def before(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, object]]:
    """The state in which something is called."""
    threads = torch.get_num_threads()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.manual_seed(1234)
    if request.param == "of the user":
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_float32_matmul_precision("medium")
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    yield _state()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_after_a_run_an_evaluation_and_a_replay_pytorch_is_as_before(
    before: dict[str, object], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    calls: dict[str, Callable[[], object]] = {
        "run": lambda: mlmlab.run(
            mlmlab.compose(*SHORT, *UNUSUAL, f"run_dir={run_dir}"), quiet=True
        ),
        "evaluation": lambda: mlmlab.evaluate_checkpoint(
            mlmlab.compose_evaluation(f"checkpoint={run_dir}", *UNUSUAL), quiet=True
        ),
        "replay": lambda: replay(
            mlmlab.compose(f"resume={run_dir}", "debug=replay", "debug.step=2"), quiet=True
        ),
    }
    for name, call in calls.items():
        call()
        assert _state() == before, name


def test_after_a_run_that_fails_pytorch_is_as_before(
    before: dict[str, object], tmp_path: Path
) -> None:
    diverging = ("train.learning_rate=1e30", "train.max_grad_norm=0", "train.max_steps=9")
    with pytest.raises(RunFailed):
        mlmlab.run(
            mlmlab.compose(*SHORT, *UNUSUAL, *diverging, f"run_dir={tmp_path}/run"), quiet=True
        )
    assert _state() == before


def _runtime(*overrides: str) -> RuntimeConfig:
    runtime: RuntimeConfig = mlmlab.compose(*overrides).runtime
    return runtime


@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("hidden_size", [128, 511, 512, 768])
def test_auto_is_bf16_for_wide_models_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, hidden_size: int, is_native: bool
) -> None:
    monkeypatch.setattr(devices, "has_native_bf16", lambda _: is_native)
    compute = Compute.for_model(hidden_size, _runtime(), torch.device("cpu"))
    is_bf16 = is_native and hidden_size >= 512
    assert compute.precision is (Precision.BF16 if is_bf16 else Precision.FP32)


@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("asked", [Precision.FP32, Precision.BF16, Precision.FP16])
def test_a_precision_that_was_asked_for_is_taken_whatever_the_model_and_the_device(
    monkeypatch: pytest.MonkeyPatch, asked: Precision, is_native: bool
) -> None:
    monkeypatch.setattr(devices, "has_native_bf16", lambda _: is_native)
    runtime = _runtime(f"runtime.precision={asked.value}")
    for hidden_size in (128, 768):
        assert Compute.for_model(hidden_size, runtime, torch.device("cpu")).precision is asked


@pytest.mark.parametrize("is_native", [False, True])
def test_a_small_model_trains_and_is_evaluated_in_fp32_unless_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_native: bool
) -> None:
    monkeypatch.setattr(devices, "has_native_bf16", lambda _: is_native)
    exact = mlmlab.run(
        mlmlab.compose(*SHORT, "runtime.precision=fp32", f"run_dir={tmp_path}/fp32"), quiet=True
    ).summary
    auto = mlmlab.run(mlmlab.compose(*SHORT, f"run_dir={tmp_path}/auto"), quiet=True).summary
    assert auto.eval_loss == exact.eval_loss
    report = mlmlab.evaluate_checkpoint(
        mlmlab.compose_evaluation(f"checkpoint={tmp_path}/auto"), quiet=True
    )
    assert report.evaluation.loss == exact.eval_loss


@pytest.mark.parametrize("is_native", [False, True])
def test_a_run_says_that_a_cpu_has_no_instructions_for_its_precision(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    is_native: bool,
) -> None:
    monkeypatch.setattr(devices, "has_native_bf16", lambda _: is_native)
    for precision, is_slow in (("fp32", False), ("bf16", not is_native), ("fp16", True)):
        run_dir = f"run_dir={tmp_path}/{precision}"
        mlmlab.run(mlmlab.compose(*SHORT, f"runtime.precision={precision}", run_dir))
        shown = capsys.readouterr().out
        assert ("very slow on this CPU" in " ".join(shown.split())) is is_slow, precision
