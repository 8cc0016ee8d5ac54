"""python -m mlmlab.train: Hydra composes a config, `execute` does what it says."""

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mlmlab.cli.commands import TRAIN, as_command, config_folder
from mlmlab.cli.compose import plain, run_mapping
from mlmlab.cli.hydra_main import refuse_under_torchrun, run_with_hydra
from mlmlab.cli.jobs import Job, folder_name
from mlmlab.cli.sweeps import reported
from mlmlab.config import build
from mlmlab.runs import execute
from mlmlab.runs.exit_status import exit_status

OmegaConf.register_new_resolver("mlmlab.job", folder_name, replace=True)


@hydra.main(config_path=str(config_folder()), config_name="train", version_base="1.3")
def train(composed: DictConfig) -> float | None:
    """The complete command, or one job of a sweep, for which it returns the monitored figure."""
    hydra_config, mapping = HydraConfig.get(), plain(composed)
    overrides = list(hydra_config.overrides.task)
    if hydra_config.mode is RunMode.MULTIRUN:
        refuse_under_torchrun()
        return Job.of(hydra_config, mapping["varies"]).run(mapping, overrides)
    with exit_status():  # here already, because Hydra adds a line to whatever passes through it
        execute(build(run_mapping(mapping, overrides)), overrides=overrides)
    return None


def main() -> None:
    """Composes the config, or those of a sweep, and runs them."""
    run_with_hydra(train, TRAIN, reported)


def command() -> None:
    """The command as a process."""
    as_command(main)


if __name__ == "__main__":
    command()
