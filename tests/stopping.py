"""Runs in separate processes, for tests that stop them; and what two runs have in common."""

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import mlmlab

SMALLEST = (
    "model.layers=1",
    "model.hidden_size=32",
    "model.heads=2",
    "model.intermediate_size=64",
    "data.limit=400",
    "train.batch_size=8",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.precision=fp32",
)
"""A model and a text for runs of many steps a second."""
TINY = (
    *SMALLEST,
    "model.dropout=0.1",
    "train.max_steps=60",
    "train.warmup_steps=5",
    "train.log_every_steps=7",
    "train.save_every_steps=15",
    "eval.every_steps=21",
    "eval.fill_mask=[]",
)
"""A run of a second or two. Its checkpoints lie between log lines, its evaluations after one."""
PATIENT = (
    *TINY,
    "eval.every_steps=10",
    "train.save_every_steps=null",
    "train.keep_checkpoints=1",
    "train.early_stopping_patience=2",
)
"""A run that ends after two evaluations that are no better."""
GETTING_WORSE = (
    *PATIENT,
    "train.learning_rate=0.1",
    "train.schedule=constant",
    "train.warmup_steps=0",
    "train.adam_beta2=0.5",
)
"""A run that does so: it diverges after its best evaluation."""


@dataclass
class Running:
    """A command in a separate process."""

    process: ForkServerProcess
    output: Path
    """What it writes to stdout and stderr."""

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, moment: Callable[[], bool], *, seconds: float = 120.0) -> bool:
        """Whether the moment came before the process ended."""
        end = time.monotonic() + seconds
        while self.is_alive:
            if moment():
                return True
            assert time.monotonic() < end, self.output.read_text()
            time.sleep(0.0005)
        return moment()

    def status(self, *, seconds: float = 120.0) -> int:
        """Waits for its end; negative: the signal that ended it."""
        self.process.join(seconds)
        status = self.process.exitcode
        assert status is not None, self.output.read_text()
        return status


def start(arguments: Sequence[str], folder: Path) -> Running:
    """`python -m mlmlab.train ARGUMENTS` in a folder.

    The process is forked from one that has imported PyTorch and our modules and done nothing else:
    all that it does itself, and all that a kill leaves undone, is as in any other process.
    """
    output = folder / f"output-{time.monotonic_ns()}.txt"
    process = forkserver().Process(target=_train, args=(tuple(arguments), folder, output))
    process.start()
    return Running(process, output)


@functools.cache
def forkserver() -> ForkServerContext:
    """Forks processes that have imported PyTorch and all that a run imports; one per worker."""
    folders = [str(Path(mlmlab.__file__).parents[1]), str(Path(__file__).parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    modules = ["train", "runs.train", "runs.replay", "training.sharding"]
    context.set_forkserver_preload(
        ["ranks", *(f"mlmlab.{module}" for module in modules), "torch._inductor"]
    )
    return context


def _train(arguments: Sequence[str], folder: Path, output: Path) -> None:
    from mlmlab.cli.commands import as_command
    from mlmlab.train import main

    multiprocessing.set_start_method("fork", force=True)  # as in a process started by hand
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    sys.argv = ["train", *arguments]
    as_command(main)


def as_killed(run_dir: Path, copy: Path, *, checkpoints: Sequence[int]) -> Path:
    """A copy of a finished run as a kill after the last of some of its checkpoints leaves it."""
    shutil.copytree(run_dir, copy)
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "export")
    for folder in (copy / "checkpoints").iterdir():
        if folder.name not in {f"step_{number}" for number in checkpoints}:
            shutil.rmtree(folder)
    return copy


def listing(run_dir: Path) -> dict[str, tuple[int, int]]:
    """All files of a folder, with their sizes and the times when they were written."""
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def is_measured(key: str) -> bool:
    """Whether a figure differs between runs with the same bits."""
    measured = ("seconds", "_per_second", "peak_memory_bytes")
    return key.endswith(measured) or key in ("run_dir", "log_sizes")


def events(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, without what is measured."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [_unmeasured(json.loads(line)) for line in lines]


def results(run_dir: Path) -> dict[str, Any]:
    """What a finished run is about."""
    return {
        "metrics": events(run_dir),
        "summary": _unmeasured(_read(run_dir / "summary.json")),
        "exported weights": _digest(run_dir / "export" / "model.safetensors"),
    }


def bits(run_dir: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on where it was stopped."""
    newest = run_dir / "checkpoints" / f"step_{_read(run_dir / 'summary.json')['steps']}"
    return {
        **results(run_dir),
        "progress": _unmeasured(_read(newest / "progress.json")["progress"]),
        "weights": _digest(newest / "model.safetensors"),
        "moments": _digest(newest / "optimizer.safetensors"),
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _unmeasured(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if not is_measured(key)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
