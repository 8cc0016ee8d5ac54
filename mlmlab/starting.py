"""runtime.processes=N: the command starts its own processes, with PyTorch's launcher.

The same as torchrun, but inside a job: a sweep is composed once, and each of its jobs has processes
that know nothing of Hydra.
"""

import logging
import os
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mlmlab import schema
from mlmlab.command import exit_status
from mlmlab.config import RunConfig, build
from mlmlab.errors import ProcessFailed


def run_in_processes(config: RunConfig) -> float:
    """Runs a config in `runtime.processes` processes of this machine.

    Returns:
        The final eval loss.

    Raises:
        ProcessFailed: one of them failed, and has said why.
    """
    count = config.runtime.processes
    assert count is not None
    # Each process would otherwise take all cores. torchrun says 1 here.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
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
        results = elastic_launch(settings, _run)(schema.to_mapping(config))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        raise ProcessFailed(status) from error
    except SignalException as error:
        raise ProcessFailed(128 + error.sigval) from error
    return float(results[0])


def _run(mapping: Mapping[str, Any]) -> float:
    """One of the processes."""
    from mlmlab.launch import run

    with exit_status():
        return run(build(mapping)).eval_loss
