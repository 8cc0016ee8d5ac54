"""A job of a sweep: its folder's name, what it prints, and how it ends."""

import json
import multiprocessing
import os
import re
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from mlmlab.cli.compose import run_mapping
from mlmlab.config import build
from mlmlab.errors import FailedElsewhere, Interrupted, RunFailed, UserError
from mlmlab.runs import execute, finished
from mlmlab.system import lock
from mlmlab.tracking.progress_bar import SweepJob, duration
from mlmlab.tracking.style import Style, styled

if TYPE_CHECKING:
    from mlmlab.tracking.summary import Summary

ERROR = "error.json"
"""In a job's folder while its last attempt has failed: {"status", "reason", "message"}."""
_LONGEST_NAME = 100


def dotted(override: Override) -> str:
    """The config key that an override sets; for a group, where it is put."""
    return override.package or override.key_or_group


def varied(varies: Sequence[str], overrides: Sequence[str]) -> dict[str, str]:
    """What a job sets of the keys that its sweep varies, as text."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {dotted(override): override.get_value_element_as_str() for override in parsed}
    # Without the backslashes with which Hydra writes package.module:name.
    return {key: re.sub(r"\\(.)", r"\1", values[key]) for key in varies if key in values}


def folder_name(number: int, varies: Sequence[str], overrides: Sequence[str]) -> str:
    """The name of a job's folder: 3_rate=0.3_seed=0. It depends on what varies, and on nothing
    else, so that a resumed sweep finds it again.

    Args:
        number: Hydra's, counted from 0; the folder's counts from 1, as the job's name does.
    """
    values = varied(varies, overrides)
    parts = [f"{_short(key, varies)}={_plain(value)}" for key, value in values.items()]
    name = "_".join([str(number + 1), *parts])
    if len(name) <= _LONGEST_NAME:
        return name
    digest = sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}-{digest}"


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a key; more parts where another key ends with the same ones."""
    parts = key.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
    others = [f".{other}" for other in keys if other != key]
    return next((end for end in ends if not any(o.endswith(f".{end}") for o in others)), key)


def _plain(value: str) -> str:
    without_plus = value.replace("e+", "e")  # 1e+18 is 1e18, and no 1e-18
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", without_plus.strip("'\"[]{}() ")).rstrip("-")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job, as Hydra started it."""

    number: int
    """Counted from 1."""
    count: int | None
    """Jobs of the sweep, where that is known."""
    values: Mapping[str, str]
    """What it sets of the keys that vary."""
    folder: Path
    began: float
    """When the sweep did, in seconds since the epoch."""
    launcher: str
    """Hydra's launcher: basic, joblib, submitit_slurm, ..."""

    @classmethod
    def of(cls, hydra: HydraConf, varies: Sequence[str]) -> "Job":
        """Reads it from Hydra's config.

        Args:
            varies: the keys that the sweep varies.
        """
        sweep: Any = hydra.callbacks["sweep"]
        return cls(
            number=int(hydra.job.num) + 1,
            count=sweep.jobs,
            values=varied(varies, hydra.overrides.task),
            folder=Path(hydra.runtime.output_dir),
            began=sweep.began,
            launcher=hydra.runtime.choices["hydra/launcher"],
        )

    @property
    def name(self) -> str:
        """For its lines."""
        return f"job {self.number}" + (f" of {self.count}" if self.count else "")

    @property
    def title(self) -> str:
        """Its name and what it varies."""
        return f"{self.name}: " + " ".join(f"{key}={value}" for key, value in self.values.items())

    def run(self, mapping: Mapping[str, Any], overrides: Sequence[str]) -> float | None:
        """Runs it, and prints what a person who watches the sweep wants to see of it.

        Returns:
            The monitored figure, for a sweeper that searches. None: it failed, which is printed and
            kept in error.json, and leaves the other jobs alone; or the sweep is stopping.

        Raises:
            Interrupted: it was, and the jobs after it are not to begin.
        """
        if stop.signal is not None:
            return None
        if self.launcher == "joblib":
            stop.listen()
            take_device(self.folder.parent)
        error_file = self.folder / ERROR
        error_file.unlink(missing_ok=True)  # of an attempt before this one
        try:
            config = build(run_mapping({**mapping, "run_dir": str(self.folder)}, overrides))
            if summary := finished(config):
                print(f"{self.title} (finished before)", flush=True)
                return summary.figures[summary.monitor]
            gap = "\n" if self.launcher == "basic" else ""
            print(gap + styled(self.title, Style.STRONG), flush=True)
            outcome = execute(config, job=self._shown, overrides=overrides)
        except (KeyboardInterrupt, FailedElsewhere) as error:
            status = getattr(error, "status", 128 + signal.SIGINT)
            if status not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                self._note(error)
                return None
            if self.launcher == "basic":
                is_from_here = isinstance(error, KeyboardInterrupt)  # else it is printed already
                said = (is_from_here and str(error).partition("\n")[0]) or "interrupted"
                raise Interrupted(status - 128, f"{self.name}: {said}") from error
            stop.signal = status - 128  # the process that began the sweep reports it
            return None
        except Exception as error:
            self._note(error)
            return None
        from mlmlab.runs.replay import Replay

        if isinstance(outcome, Replay):
            return outcome.loss
        seconds = duration(outcome.seconds)
        line = f"{self.name}: {_result(outcome)} in {seconds} ({self._progress()})"
        print(textwrap.fill(line, 79, subsequent_indent="  "), flush=True)
        return outcome.figures[outcome.monitor]

    @property
    def _shown(self) -> SweepJob:
        is_side_by_side = self.launcher != "basic"
        return SweepJob(
            name=f"job {self.number}" if is_side_by_side else self.name,
            shows_plan=self.number == 1,
            is_side_by_side=is_side_by_side,
        )

    def _note(self, error: BaseException) -> None:
        """Prints why it failed, and keeps it."""
        message = str(error)
        reason = message.partition("\n")[0]
        if isinstance(error, UserError):
            reason = "; ".join(f"{problem.where}: {problem.found}" for problem in error.problems)
        elif not isinstance(error, (RunFailed, FailedElsewhere)):  # a defect, or no memory left
            reason = f"{type(error).__name__}: {reason}"
            message = "".join(traceback.format_exception(error)).rstrip()
        content = {
            "status": getattr(error, "status", RunFailed.status),
            "reason": " ".join(reason.split()),
            "message": message,
        }
        head = styled("mlmlab:", Style.ERROR, sys.stderr)
        sys.stdout.flush()
        sys.stderr.write(f"{head} {self.name}: {message}\n")
        sys.stderr.flush()
        (self.folder / ERROR).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _progress(self) -> str:
        """How far the sweep is."""
        ended = [file.stat().st_mtime for file in self.folder.parent.glob("*/summary.json")]
        ended += [file.stat().st_mtime for file in self.folder.parent.glob(f"*/{ERROR}")]
        # One after another, those before this one are done; else it is not known which.
        done = self.number if self.launcher == "basic" else len(ended)
        if self.count is None:
            return f"{done} done"
        new = sum(when >= self.began for when in ended)
        left = (time.time() - self.began) / max(1, new) * (self.count - done)
        about = f", about {duration(left)} left" if done < self.count else ""
        return f"{done} of {self.count} done{about}"


def _result(summary: "Summary") -> str:
    from mlmlab.runs.terminal import job_result

    return job_result(summary)


class Stop:
    """A signal that has asked this process to end its part of the sweep: the jobs that run finish
    their step and write a checkpoint, and no other job begins."""

    signal: int | None = None

    def listen(self) -> None:
        """Notes SIGTERM and SIGINT from now on, wherever no job does that itself."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == self.signal == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C
        self.signal = self.signal or number
        for child in multiprocessing.active_children():  # a sweep's process: its jobs'
            with suppress(ProcessLookupError):
                os.kill(child.pid or 0, signal.SIGTERM)


stop = Stop()
_devices: list[IO[str]] = []
"""Files that this process keeps locked, for the CUDA devices that it has taken."""


def take_device(folder: Path) -> None:
    """Takes one of the CUDA devices that CUDA_VISIBLE_DEVICES lists, for all jobs that this process
    will run: the first one that none of the other processes has; where there are more processes
    than devices, they share. PyTorch must not have used CUDA yet.

    Args:
        folder: of the sweep. The processes agree by locks on files in it.
    """
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(devices) < 2:
        return
    for number, device in enumerate(devices):
        file = (folder / f".device_{number}").open("w")
        try:
            lock(file)
        except BlockingIOError:
            file.close()
            continue
        _devices.append(file)
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[os.getpid() % len(devices)]
