"""python -m mlmlab.evaluate: masked perplexity and accuracy of a checkpoint on some text."""

import dataclasses
import json
import os
import sys

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mlmlab.cli.commands import EVALUATE, as_command, config_folder
from mlmlab.cli.compose import compose_evaluation
from mlmlab.cli.hydra_main import run_with_hydra
from mlmlab.runs import evaluate_checkpoint
from mlmlab.runs.exit_status import exit_status


@hydra.main(config_path=str(config_folder()), config_name="evaluate", version_base="1.3")
def evaluate(_: DictConfig) -> None:
    """One evaluation: the complete command, or one point of a sweep.

    Hydra has composed the defaults and the overrides. They are composed again, because a run's
    own config comes between the two where the checkpoint is a run's.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        _score(hydra_config)
        return
    with exit_status():  # here already, because Hydra adds a line to whatever passes through it
        _score(hydra_config)


def _score(hydra_config: HydraConf) -> None:
    sources = hydra_config.runtime.config_sources
    own = [source.path for source in sources if source.provider == "command-line"]
    config = compose_evaluation(*hydra_config.overrides.task, config_dir=own[0] if own else None)
    if hydra_config.mode is RunMode.MULTIRUN:  # a folder for each
        own_folder = hydra_config.runtime.output_dir
        out = own_folder if config.out is None else f"{config.out}/{hydra_config.job.num}"
        config = dataclasses.replace(config, out=out)
    report = evaluate_checkpoint(config)
    as_json = config.json if config.json is not None else not sys.stdout.isatty()
    if as_json and os.environ.get("RANK", "0") == "0":  # under torchrun
        print(json.dumps(report.to_mapping()))


def main() -> None:
    """Composes the config, or those of a sweep, scores, and prints."""
    if "--cfg" in sys.argv or "-c" in sys.argv:
        print("For a run's folder, the run's own data, runtime and eval.* take the place of these "
              "defaults.", file=sys.stderr)  # fmt: skip
    run_with_hydra(evaluate, EVALUATE)


def command() -> None:
    """The command as a process."""
    as_command(main)


if __name__ == "__main__":
    command()
