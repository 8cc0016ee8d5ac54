"""python -m mlmlab.train: Hydra composes a config, `run` does what it says."""

import hashlib
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mlmlab.command import as_command, exit_status
from mlmlab.composition import config_folder, plain
from mlmlab.config import build
from mlmlab.errors import UserError


def _job_folder(number: int, overrides: str) -> str:
    """A sweep's folder for one job: its number, and a hash of what is special about it."""
    return f"{number}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("mlmlab.job", _job_folder, replace=True)


@hydra.main(config_path=str(config_folder()), config_name="train", version_base="1.3")
def train(composed: DictConfig) -> float:
    """One job: the whole command, or one point of a sweep. Returns the final eval loss."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        # A job raises. Hydra names it, runs the others, and passes the first error on at the end.
        return _run(_with_job_folder(plain(composed)))
    with exit_status():  # here already, because Hydra adds a line to whatever passes through it
        return _run(plain(composed))


def _with_job_folder(mapping: dict[str, Any]) -> dict[str, Any]:
    if mapping["run_dir"] is not None:
        raise UserError.of(
            "run_dir",
            found=f"{mapping['run_dir']}, for every job of a sweep",
            expected="run_dir=null: each job gets a folder of its own",
            remedy="hydra.sweep.dir=FOLDER chooses the folder that holds them",
        )
    return mapping | {"run_dir": HydraConfig.get().runtime.output_dir}


def _run(mapping: dict[str, Any]) -> float:
    config = build(mapping)
    from mlmlab.launch import run  # a wrong option need not wait for PyTorch

    return run(config).eval_loss


if __name__ == "__main__":
    as_command(train)
