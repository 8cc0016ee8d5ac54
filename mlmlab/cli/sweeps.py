"""A sweep: it is refused before its first job if one of its jobs would be, and says what varies."""

import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from mlmlab.cli.compose import plain, run_mapping
from mlmlab.cli.hydra_errors import composition_errors
from mlmlab.config import build
from mlmlab.errors import Code, Problem, UserError
from mlmlab.runs.exit_status import exit_status


class SweepCheck(Callback):
    """Hydra's callback before a sweep (`hydra.callbacks` in train.yaml). Without it, a wrong job
    would be reported after all the others have been trained."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the command with a message if a job cannot be built.

        Args:
            config: composed, but for what is swept.
        """
        loader = GlobalHydra.instance().config_loader()
        # Only the basic sweeper runs all combinations; others choose as they go.
        if config.hydra.runtime.choices["hydra/sweeper"] == "basic":
            # exit_status is inside, because Hydra turns a callback's exception into a warning.
            with exit_status(), composition_errors(sys.argv[1:]):
                check_sweep(config, loader)
        config.hydra.overrides.task.append(f"varies=[{','.join(varying(config, loader))}]")


def varying(config: DictConfig, loader: ConfigLoader) -> list[str]:
    """The keys that a sweep varies: those with several values, or with an interval to search."""
    varies = {_dotted(given): given.is_sweep_override() for given in _given(config, loader)}
    return [key for key, is_varied in varies.items() if is_varied]


def _given(config: DictConfig, loader: ConfigLoader) -> list[Override]:
    """What the sweep's config and the command line set; the command line comes last, and wins."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=loader)
    return parser.parse_overrides([*params, *config.hydra.overrides.task])


def _dotted(override: Override) -> str:
    """The config key that an override sets; for a group, where it is put."""
    return override.package or override.key_or_group


def check_sweep(config: DictConfig, loader: ConfigLoader) -> None:
    """Composes and builds every job.

    Raises:
        UserError: what is wrong with any of them, each mistake once.
    """
    problems: dict[Problem, None] = {}
    for overrides in _jobs(config, loader):
        job = loader.load_sweep_config(config, overrides)
        mapping = plain(OmegaConf.masked_copy(job, [str(key) for key in job if key != "hydra"]))
        try:
            refuse_shared_folder(mapping)
            build(run_mapping(mapping | {"resume": None}, overrides))
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise UserError(problems)


def _jobs(config: DictConfig, loader: ConfigLoader) -> Iterator[list[str]]:
    """The overrides of each job, as Hydra's basic sweeper combines them."""
    choices: dict[str, list[str]] = {}
    for override in _given(config, loader):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        # An interval is refused by the sweeper itself.
    return map(list, itertools.product(*choices.values()))


def refuse_shared_folder(mapping: Mapping[str, Any]) -> None:
    """Refuses what would lead all jobs of a sweep into one folder.

    Raises:
        UserError: the key.
    """
    if mapping["run_dir"] is not None:
        raise UserError.of(
            "run_dir",
            code=Code.CONFLICT,
            found=f"{mapping['run_dir']}, for every job of a sweep",
            expected="run_dir=null: each job gets a folder of its own",
            remedy="sweep_dir=FOLDER chooses the folder that holds them",
        )
    if mapping["resume"] not in (None, "auto"):
        raise UserError.of(
            "resume",
            code=Code.CONFLICT,
            found=f"{mapping['resume']}, for every job of a sweep",
            expected="resume=auto: each job resumes in its own folder",
            remedy="-m resume=auto sweep_dir=FOLDER, with the sweep's other overrides as before",
        )
