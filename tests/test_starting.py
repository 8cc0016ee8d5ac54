"""Processes that the command starts itself, without starting any."""

import os
from collections.abc import Callable

import pytest

import mlmlab
from mlmlab.config import RunConfig
from mlmlab.runs import spawn
from mlmlab.runs.train import train


@pytest.fixture
def cores_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], str]:
    """OMP_NUM_THREADS as the processes of a run inherit it, on a machine of 16 cores."""
    seen: list[str] = []

    def launch(*_: object) -> Callable[[object], dict[int, float]]:
        def run(*_: object) -> dict[int, float]:
            seen.append(os.environ["OMP_NUM_THREADS"])
            return {0: 0.0}

        return run

    monkeypatch.setattr(spawn, "elastic_launch", launch)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)

    def cores(processes: int) -> str:
        config: RunConfig = mlmlab.compose(f"runtime.processes={processes}")
        spawn.in_processes(train, config, quiet=True)
        return seen[-1]

    return cores


def test_each_job_of_a_sweep_shares_the_cores_among_its_own_processes(
    cores_of: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [cores_of(processes) for processes in (1, 4, 32)] == ["16", "4", "1"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_the_users_number_of_threads_is_kept(
    cores_of: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [cores_of(processes) for processes in (1, 4)] == ["3", "3"]
    assert os.environ["OMP_NUM_THREADS"] == "3"
