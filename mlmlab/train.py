"""python -m mlmlab.train: Hydra composes a config, `execute` does what it says."""

import io
import os
import sys
from contextlib import redirect_stdout, suppress

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mlmlab.cli.commands import as_command, config_folder, in_eighty_columns, invocation
from mlmlab.cli.compose import plain, run_mapping, with_own_options
from mlmlab.cli.hydra_errors import composition_errors
from mlmlab.cli.jobs import Job, folder_name
from mlmlab.cli.sweeps import reported
from mlmlab.config import build
from mlmlab.errors import Code, UserError
from mlmlab.runs import execute
from mlmlab.runs.exit_status import exit_status

OmegaConf.register_new_resolver("mlmlab.job", folder_name, replace=True)
OmegaConf.register_new_resolver("mlmlab.invocation", invocation, replace=True)  # for --help


@hydra.main(config_path=str(config_folder()), config_name="train", version_base="1.3")
def train(composed: DictConfig) -> float | None:
    """The whole command, or one job of a sweep, for which it returns the monitored figure."""
    hydra_config, mapping = HydraConfig.get(), plain(composed)
    overrides = list(hydra_config.overrides.task)
    if hydra_config.mode is RunMode.MULTIRUN:
        _refuse_under_torchrun()
        return Job.of(hydra_config, mapping["varies"]).run(mapping, overrides)
    with exit_status():  # here already, because Hydra adds a line to whatever passes through it
        execute(build(run_mapping(mapping, overrides)))
    return None


def _refuse_under_torchrun() -> None:
    if "RANK" in os.environ:
        raise UserError.of(
            "-m under torchrun",
            code=Code.CONFLICT,
            found="a sweep in each of torchrun's processes",
            expected="processes for each job of the sweep, not a sweep for each process",
            remedy="python -m mlmlab.train -m runtime.processes=N ...: each job starts its own",
        )


def main() -> None:
    """Composes the config, or those of a sweep, and runs them."""
    if not {"-m", "--multirun"}.isdisjoint(sys.argv[1:]):
        _refuse_under_torchrun()  # now: for its first job, Hydra creates the sweep's folder
    sys.argv[1:] = with_own_options(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits before we see its errors
    with composition_errors(sys.argv[1:]):
        if {"--help", "-h"}.isdisjoint(sys.argv[1:]):
            with reported():
                train()
            return
        with redirect_stdout(io.StringIO()) as text, suppress(SystemExit):  # Hydra exits after it
            train()
        print(in_eighty_columns(text.getvalue()))


def command() -> None:
    """The command as a process."""
    as_command(main)


if __name__ == "__main__":
    command()
