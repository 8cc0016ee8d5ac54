"""A complete sweep: it is refused before its first job if one of its jobs would be, and ends with
a table."""

import itertools
import json
import logging
import os
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlmlab.cli.commands import invocation
from mlmlab.cli.compose import plain, run_mapping
from mlmlab.cli.hydra_errors import composition_errors
from mlmlab.cli.jobs import ERROR, dotted, stop
from mlmlab.config import build
from mlmlab.errors import Code, Interrupted, Problem, RunFailed, UserError
from mlmlab.runs.exit_status import exit_status
from mlmlab.tracking.style import Style, styled


class Sweep(Callback):
    """Hydra's callback before a sweep (`hydra.callbacks` in train.yaml). Without it, a wrong job
    would be reported after all the others have been trained."""

    running: ClassVar["Sweep | None"] = None
    """The sweep of this process, which may have other processes run its jobs."""

    def __init__(self, jobs: int | None = None, began: float | None = None) -> None:
        """Hydra calls it.

        Args:
            jobs: how many there are, where that is known. The sweep notes it, for its jobs.
            began: when it did, in seconds since the epoch, likewise.
        """
        self.jobs, self.began = jobs, began
        self.folder = Path()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the command with a message if a job cannot be built, and notes for all jobs what
        varies between them.

        Args:
            config: composed, but for what is swept.
        """
        loader, choices = GlobalHydra.instance().config_loader(), config.hydra.runtime.choices
        # exit_status is inside, because Hydra turns a callback's exception into a warning.
        with exit_status(), composition_errors(sys.argv[1:]):
            self.jobs = check_sweep(config, loader)
        if choices["hydra/sweeper"] != "basic":  # Optuna's grid has fewer of them
            is_grid = choices.get("hydra/sweeper/sampler") == "grid"
            self.jobs = None if is_grid else config.hydra.sweeper.get("n_trials")
        self.began, self.folder = time.time(), Path(config.hydra.sweep.dir)
        sweeps = {dotted(given): given for given in _given(config, loader)}
        varies = {key: given for key, given in sweeps.items() if given.is_sweep_override()}
        config.hydra.overrides.task.append(f"varies=[{','.join(varies)}]")
        config.hydra.overrides.hydra += [
            f"hydra.callbacks.sweep.jobs={'null' if self.jobs is None else self.jobs}",
            f"hydra.callbacks.sweep.began={self.began}",
        ]
        if choices["hydra/launcher"] == "joblib":
            _list_devices()
            stop.signal = None
            stop.listen()
        if choices["hydra/sweeper"] == "optuna":
            import optuna

            optuna.logging.set_verbosity(logging.WARNING)  # it says what we say
        count = "jobs" if self.jobs is None else f"{self.jobs} job{'s' if self.jobs != 1 else ''}"
        shown = " ".join(given.input_line or key for key, given in varies.items())
        _print_row("sweep", f"{count}: {shown}" if shown else count)
        _print_row("folder", f"{self.folder}")
        Sweep.running = self

    def finish(self, error: BaseException | None) -> None:
        """Prints what the sweep came to.

        Args:
            error: what ended it early. A job that fails does not.

        Raises:
            Interrupted: it was asked to stop.
            RunFailed: jobs have failed, or have not finished.
        """
        if stop.signal is not None:
            error = Interrupted(stop.signal, f"stopped by {signal.Signals(stop.signal).name}")
        if isinstance(error, KeyboardInterrupt):
            number = getattr(error, "status", 128 + signal.SIGINT) - 128
            raise Interrupted(number, f"{error or 'interrupted'}\n{self.again()}") from error
        finished = [file.parent for file in self.folder.glob("*/summary.json")]
        failed = {file.parent: file for file in self.folder.glob(f"*/{ERROR}")}
        count = len(finished) + len(failed) if self.jobs is None else self.jobs
        unfinished = max(0, count - len(finished) - len(failed))
        print()
        if finished:
            from mlmlab.analysis import table  # a single run does not wait for it

            print(table([self.folder]), end="\n\n")
        _print_row("finished", f"{len(finished)} of {count} jobs")
        _print_row("folder", str(self.folder))
        if finished:
            _print_row("report", f"python -m mlmlab.report {self.folder}")
        if not failed and not unfinished and error is None:
            return
        lines = [f"of {count} jobs, {len(failed)} failed"]
        if unfinished:
            lines[0] += f", {unfinished} did not finish"
        statuses = set()
        for folder, file in sorted(failed.items()):
            content = json.loads(file.read_text(encoding="utf-8"))
            statuses.add(content["status"])
            lines += [f"  {folder}", f"    {content['reason']}"]
        if error is not None:
            lines.append(f"  the sweep ended early: {type(error).__name__}: {error}")
        failure = RunFailed("\n".join([*lines, self.again()]))
        if statuses == {UserError.status} and not unfinished:
            failure.status = UserError.status
        raise failure from error

    def again(self) -> str:
        """How to do what is missing."""
        given = [
            argument
            for argument in sys.argv[1:]
            if argument.partition("=")[0] not in ("resume", "sweep_dir")
        ]
        extra = ["resume=auto", f"sweep_dir={self.folder}"]
        command = f"{invocation('train')} {shlex.join([*given, *extra])}"
        return f"To run what is missing, and nothing else:\n  {command}"


@contextmanager
def reported() -> Iterator[None]:
    """Around Hydra's sweep, if it is one: prints what it came to, and raises what becomes of it."""
    error: BaseException | None = None
    try:
        yield
    except (Exception, KeyboardInterrupt) as raised:
        error = raised
    sweep, Sweep.running = Sweep.running, None
    is_composition = isinstance(error, (HydraException, OmegaConfBaseException))
    if sweep is not None and not is_composition:
        sweep.finish(error)
    elif error is not None:
        raise error


def _print_row(label: str, text: str) -> None:
    lines = textwrap.wrap(text, 68, break_long_words=False, break_on_hyphens=False)
    print(styled(f"{label:<11}", Style.LABEL) + f"\n{'':<11}".join(lines), flush=True)


def _list_devices() -> None:
    """Has CUDA_VISIBLE_DEVICES list the CUDA devices, for `take_device` in the processes of the
    jobs, which must choose one before PyTorch looks for them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    import torch

    if (count := torch.cuda.device_count()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(count)))


def _given(config: DictConfig, loader: ConfigLoader) -> list[Override]:
    """What the sweep's config and the command line set; the command line comes last, and wins."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=loader)
    # Unresolved: ${seed} is each job's own.
    task = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(task, list)
    return parser.parse_overrides([*params, *task])


def check_sweep(config: DictConfig, loader: ConfigLoader) -> int:
    """Composes and builds every job.

    Returns:
        How many there are.

    Raises:
        UserError: what is wrong with any of them, each mistake once.
    """
    problems: dict[Problem, None] = {}
    repositories: set[str] = set()
    count = 0
    for overrides in _jobs(config, loader):
        count += 1
        job = loader.load_sweep_config(config, overrides)
        mapping = plain(OmegaConf.masked_copy(job, [str(key) for key in job if key != "hydra"]))
        try:
            refuse_shared_folder(mapping)
            built = build(run_mapping(mapping | {"resume": None}, overrides))
            refuse_shared_repository(built.train.push_to_hub, repositories)
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise UserError(problems)
    return count


def _jobs(config: DictConfig, loader: ConfigLoader) -> Iterator[list[str]]:
    """The overrides of each job, as Hydra's basic sweeper combines them. Other sweepers choose as
    they go: for them a single job, without what they vary."""
    is_known = config.hydra.runtime.choices["hydra/sweeper"] == "basic"
    choices: dict[str, list[str]] = {}
    for override in _given(config, loader):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif is_known and override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        # An interval is refused by the basic sweeper itself.
    return map(list, itertools.product(*choices.values()))


def refuse_shared_repository(repository: str | None, taken: set[str]) -> None:
    """Refuses what would have each job of a sweep replace the model that another has pushed.

    Args:
        repository: a job's train.push_to_hub.
        taken: those of the jobs before it; this one is added.

    Raises:
        UserError: it is one of them.
    """
    if repository is None:
        return
    if repository in taken:
        raise UserError.of(
            "train.push_to_hub",
            code=Code.CONFLICT,
            found=f"{repository}, for several jobs of a sweep",
            expected="a repository for each job",
            remedy=f"'train.push_to_hub={repository}-${{seed}}', with the keys that vary",
        )
    taken.add(repository)


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
            expected="run_dir=null: each job gets its own folder",
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
