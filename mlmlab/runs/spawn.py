"""runtime.processes=N: the command starts its own processes, with PyTorch's launcher.

The same as torchrun, but inside a job: a sweep is composed once, and each of its jobs has processes
that know nothing of Hydra.
"""

import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mlmlab import schema
from mlmlab.runs.exit_status import exit_status
from mlmlab.config import EvaluateConfig, RunConfig, build, build_evaluation
from mlmlab.errors import FailedElsewhere
from mlmlab.runs.evaluate import EvaluationReport, score
from mlmlab.runs.train import train
from mlmlab.tracking.summary import Summary

Result = TypeVar("Result")


def run_in_processes(config: RunConfig, *, quiet: bool) -> Summary:
    """Runs a config in `runtime.processes` processes of this machine.

    Raises:
        FailedElsewhere: one of them failed, and has printed why.
    """
    return _first_of(config.runtime.processes, _train, config, quiet)


def evaluate_in_processes(config: EvaluateConfig, *, quiet: bool) -> EvaluationReport:
    """As `run_in_processes`, for `mlmlab.evaluate`."""
    return _first_of(config.runtime.processes, _score, config, quiet)


def _first_of(
    count: int | None,
    function: Callable[[Mapping[str, Any], bool], Result],
    config: RunConfig | EvaluateConfig,
    quiet: bool,
) -> Result:
    """What a function of the config returns on rank 0 of `count` processes."""
    assert count is not None
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    sys.stdout.flush()
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        # A process says itself why it failed; the launcher's own traceback tells nothing more.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        mapping = schema.to_mapping(config)
        with _shared_cores(count):
            results: dict[int, Result] = elastic_launch(settings, function)(mapping, quiet)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        raise FailedElsewhere(status) from error
    except SignalException as error:
        raise FailedElsewhere(128 + error.sigval) from error
    return results[0]


@contextmanager
def _shared_cores(count: int) -> Iterator[None]:
    """Gives each of `count` child processes its share of the cores; each would otherwise take all
    of them (torchrun's answer to this is one core each). The children inherit OMP_NUM_THREADS from
    this process, which has to forget it again: the next job of a sweep may have other processes."""
    if "OMP_NUM_THREADS" in os.environ:  # the user's choice
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _train(mapping: Mapping[str, Any], quiet: bool) -> Summary:
    """One of a run's processes."""
    with exit_status():
        return train(build(mapping), quiet=quiet)


def _score(mapping: Mapping[str, Any], quiet: bool) -> EvaluationReport:
    """One of an evaluation's processes."""
    with exit_status():
        return score(build_evaluation(mapping), quiet=quiet)
