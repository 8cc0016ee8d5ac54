"""python -m mlmlab.train: Hydra composes a config, `execute` does what it says."""

import hashlib
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mlmlab.cli.commands import TRAIN, as_command, config_folder
from mlmlab.cli.compose import plain, run_mapping
from mlmlab.cli.hydra_main import run_with_hydra
from mlmlab.cli.sweeps import refuse_shared_folder
from mlmlab.config import build
from mlmlab.runs import execute
from mlmlab.runs.exit_status import exit_status


def _job_folder(number: int, overrides: str) -> str:
    """A sweep's folder for one job: its number, and a hash of what is special about it."""
    return f"{number}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("mlmlab.job", _job_folder, replace=True)


@hydra.main(config_path=str(config_folder()), config_name="train", version_base="1.3")
def train(composed: DictConfig) -> float:
    """One job: the whole command, or one point of a sweep. Returns the monitored figure."""
    hydra_config, mapping = HydraConfig.get(), plain(composed)
    overrides = list(hydra_config.overrides.task)
    if hydra_config.mode is RunMode.MULTIRUN:
        refuse_shared_folder(mapping)  # where another sweeper than Hydra's own has chosen the job
        mapping["run_dir"] = hydra_config.runtime.output_dir
        # A job raises. Hydra names it, runs the others, and passes the first error on at the end.
        return _run(mapping, overrides)
    with exit_status():  # here already, because Hydra adds a line to whatever passes through it
        return _run(mapping, overrides)


def _run(mapping: dict[str, Any], overrides: list[str]) -> float:
    outcome = execute(build(run_mapping(mapping, overrides)))
    from mlmlab.runs.replay import Replay

    return outcome.loss if isinstance(outcome, Replay) else outcome.figures[outcome.monitor]


def main() -> None:
    """Composes the config, or those of a sweep, and runs them."""
    run_with_hydra(train, TRAIN)


def command() -> None:
    """The command as a process."""
    as_command(main)


if __name__ == "__main__":
    command()
