"""runtime.processes=N: the command starts its own processes, with PyTorch's launcher.

The same as torchrun, but inside a job: a sweep is composed once, and each of its jobs has processes
that know nothing of Hydra.
"""

import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mlmlab.config import EvaluateConfig, RunConfig
from mlmlab.errors import FailedElsewhere
from mlmlab.runs.exit_status import exit_status
from mlmlab.runtime.distributed import is_started_by_torchrun

Result = TypeVar("Result")


def in_processes(
    run: Callable[..., Result], config: RunConfig | EvaluateConfig, *, quiet: bool
) -> Result:
    """Runs a config in `runtime.processes` processes of this machine; or in this process, where
    that is null or this is one of those processes.

    Args:
        run: `train` or `score`; it gets the config and `quiet`.

    Returns:
        What `run` returns on rank 0.

    Raises:
        FailedElsewhere: one of them failed, and has printed why.
    """
    count = config.runtime.processes
    if count is None or is_started_by_torchrun():
        return run(config, quiet=quiet)
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
        # A process prints itself why it failed; the launcher's traceback would add nothing.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with _shared_cores(count):
            results: dict[int, Result] = elastic_launch(settings, _as_rank)(run, config, quiet)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        raise FailedElsewhere(status) from error
    except SignalException as error:
        raise FailedElsewhere(128 + error.sigval) from error
    return results[0]


def _as_rank(run: Callable[..., Result], config: RunConfig | EvaluateConfig, quiet: bool) -> Result:
    with exit_status():
        return run(config, quiet=quiet)


@contextmanager
def _shared_cores(count: int) -> Iterator[None]:
    """Gives each of `count` child processes its share of the cores; each would otherwise take all
    of them (torchrun gives each one core). The children inherit OMP_NUM_THREADS from this process,
    which has to unset it afterwards: the next job of a sweep may have another number of them."""
    if "OMP_NUM_THREADS" in os.environ:  # the user's choice
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
