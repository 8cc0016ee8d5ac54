"""A run's folder, held by one run at a time; its config.yaml, and what of it a resumed run may
change."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from mlmlab import schema
from mlmlab.config import DebugMode, RunConfig
from mlmlab.errors import Code, Problem, UserError
from mlmlab.fetch.cache import absolute
from mlmlab.system import lock

_CONFIG = "config.yaml"


def check_run_dir(config: RunConfig) -> None:
    """Refuses a folder that holds something already, or cannot be written.

    Raises:
        UserError: why.
    """
    if config.run_dir is None:
        return
    folder = Path(config.run_dir)
    try:
        if (folder / _CONFIG).is_file():
            with (folder / _CONFIG).open(encoding="utf-8") as file:
                lock(file, shared=True)
        is_filled = folder.is_dir() and any(folder.iterdir())
        ancestor = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except BlockingIOError:
        raise _held_by_another("run_dir", folder) from None
    except OSError as error:
        raise _unusable("run_dir", folder, error) from error
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise UserError.of(
            "run_dir",
            code=Code.NOT_WRITABLE,
            found=f"{folder}: {ancestor} is no folder that can be written",
            expected="a folder that can be created and written",
            remedy="run_dir=ANOTHER_FOLDER",
        )
    if is_filled:
        raise UserError.of(
            "run_dir",
            code=Code.IN_USE,
            found=f"{folder}, which is there already and not empty",
            expected="a new or empty folder: a run never writes over another",
            remedy="run_dir=ANOTHER_FOLDER, or run_dir=null for one named by the time",
        )


@contextmanager
def run_folder(config: RunConfig) -> Iterator[Path]:
    """The folder of a running run, with its config.yaml, which stays locked meanwhile: the folder
    that `resume` names, or a new one, `run_dir` or one named by the time.

    The operating system drops the lock when the process ends, however it ends.

    Raises:
        UserError: it cannot be created, written or locked, or another run is at work in it.
    """
    is_new = config.resume is None
    folder = Path(config.resume or config.run_dir or Path("runs") / config.name)
    try:
        if is_new:
            folder.mkdir(parents=True, exist_ok=True)
            if config.run_dir is None:
                folder = _create_by_time(folder)
        # Open for writing: on NFS no other descriptor can have an exclusive lock (flock(2)).
        file = (folder / _CONFIG).open("x" if is_new else "r+", encoding="utf-8")
        try:
            lock(file)
            if is_new:  # at once: without it, a run that is killed could not be resumed
                file.write(OmegaConf.to_yaml(OmegaConf.create(schema.to_mapping(config))))
                file.flush()
        except OSError:
            file.close()
            if is_new:
                (folder / _CONFIG).unlink()
            raise
    except OSError as error:
        if isinstance(error, FileExistsError):
            check_run_dir(config)  # it knows whose it is
        if isinstance(error, BlockingIOError) and not is_new:
            raise _held_by_another("resume", folder) from None
        key = "resume" if config.resume else "run_dir" if config.run_dir else "name"
        raise _unusable(key, folder, error) from error
    with file:
        yield folder


def _create_by_time(parent: Path) -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for name in (stamp, *(f"{stamp}-{attempt}" for attempt in range(2, 1000))):
        with suppress(FileExistsError):
            (parent / name).mkdir()
            return parent / name
    raise AssertionError("a thousand runs within one second")


def _unusable(key: str, folder: Path, error: OSError) -> UserError:
    return UserError.of(
        key,
        code=Code.NOT_WRITABLE,
        found=f"{folder}: {error.strerror or error}",
        expected="a folder that can be created and written, on a file system with locks",
        remedy="resume=COPY of the folder, in a place that can be written"
        if key == "resume"
        else "run_dir=FOLDER",
    )


def _held_by_another(key: str, folder: Path) -> UserError:
    return UserError.of(
        key,
        code=Code.IN_USE,
        found=f"{folder}, where another run is at work now",
        expected="a separate folder for each run",
        remedy=f"{key}=ANOTHER_FOLDER, or wait for that run to end",
    )


_OF_THIS_COMMAND = ("resume", "varies", "debug.step", "debug.profile_steps")
"""Keys that say nothing about the run."""
_FIXED = (
    "seed",
    "name",
    "run_dir",
    "checkpoint",
    "checkpoint_head",
    "tokenizer",
    "data",
    "masking",
    "objective",
    "model",
    "train.batch_size",
    "train.optimizer",
    "train.freeze",
    "eval.seed",
    "eval.mask_draws",
    "eval.max_examples",
    "eval.masking",
    "eval.monitor",
    "eval.monitor_mode",
    "debug.mode",
)
"""Keys and groups that say what run it is: a resumed run may not change them."""

_HARMLESS = (
    "train.log_every_steps",
    "train.save_every_steps",
    "train.save_every_minutes",
    "train.push_to_hub",
    "eval.fill_mask",
    "tracking",
)
"""Keys that decide what is written, and nothing else."""


def read_snapshot(run_dir: Path) -> dict[str, Any]:
    """The content of a run's config.yaml.

    Raises:
        UserError: there is none, or it holds no keys.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError.of(
            "resume",
            code=Code.NOT_FOUND,
            found=f"{run_dir}, where there is no config.yaml",
            expected="the folder of a run",
            remedy="resume=RUN_DIR, one of those under runs/",
        )
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict) or not content:
        raise UserError.of(
            "resume",
            code=Code.CORRUPT,
            found=f"{path}, which holds no keys",
            expected="the config.yaml that a run has written",
            remedy="resume=ANOTHER_RUN_DIR",
        )
    return {str(key): value for key, value in content.items()}


def run_to_resume(mapping: Mapping[str, Any]) -> str | None:
    """The folder of the run that `resume` names: for `auto` that is `run_dir`, if there is a run in
    it. None: a new run.

    Args:
        mapping: a run's config.

    Raises:
        UserError: `auto` without a `run_dir`.
    """
    if mapping["resume"] != "auto":
        return None if mapping["resume"] is None else str(mapping["resume"])
    if mapping["run_dir"] is None:
        raise UserError.of(
            "resume",
            code=Code.MISSING,
            found="auto, with run_dir=null",
            expected="a folder that says which run",
            remedy="run_dir=RUN_DIR resume=auto; or resume=RUN_DIR",
        )
    run_dir = str(mapping["run_dir"])
    return run_dir if (Path(run_dir) / _CONFIG).is_file() else None


def check_version(run_dir: str, snapshot: Mapping[str, Any], composed: Mapping[str, Any]) -> None:
    """Refuses a run of a version of mlmlab that had other keys.

    Args:
        snapshot: the run's config.yaml.
        composed: a config of this version.

    Raises:
        UserError: the keys that one of them lacks.
    """
    before, now = schema.flat(snapshot).keys(), schema.flat(composed).keys()
    if before == now:
        return
    differences = [f"no {key}" for key in sorted(now - before)] + sorted(before - now)
    raise UserError.of(
        "resume",
        code=Code.OTHER_VERSION,
        found=f"{run_dir}, begun by another version of mlmlab: its config.yaml has "
        + ", ".join(differences),
        expected="a run that this version began",
        remedy=f"resume it with that version; or a new run that starts from its weights: "
        f"checkpoint={run_dir}",
    )


def allowed_changes(snapshot: Mapping[str, Any], resumed: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run has in place of the values that it began with, by dotted key.

    Raises:
        UserError: a change would make it another run; each of them by name.
    """
    before, now = schema.flat(snapshot), schema.flat(resumed)
    if now.get("debug.mode") == DebugMode.REPLAY.value:  # looks at the run, whatever its own mode
        before["debug.mode"] = now["debug.mode"]
    changes = {
        key: value
        for key, value in now.items()
        if key not in _OF_THIS_COMMAND and before.get(key) != value
    }
    problems = [
        Problem(
            key,
            f"{key}={schema.shown(value)}, for a run that began with another",
            "what the run began with: this key is part of what the run is",
            f"without {key} to resume; python -m mlmlab.train without resume for a new run",
            code=Code.CHANGED,
        )
        for key, value in changes.items()
        if is_fixed(key)
    ]
    if problems:
        raise UserError(problems)
    return changes


_FILLED_IN = ("data.revision", "data.fingerprint", "data.eval_fingerprint", "sources")
_PINNED = (
    "checkpoint",
    "tokenizer.path",
    "data.path",
    "data.eval_path",
    "data.eval_repository",
    *_FILLED_IN,
)


def keep_pins(snapshot: Mapping[str, Any], resumed: dict[str, Any]) -> None:
    """Leaves what the run pinned when it began (commits, absolute paths, fingerprints of texts) in
    place of the same thing as a user writes it, so that it is no change.

    Args:
        resumed: changed in place.
    """
    before, now = schema.flat(snapshot), schema.flat(resumed)
    for key in _PINNED:
        pinned, value = before.get(key), now.get(key)
        if pinned is None or value == pinned:
            continue
        if value in (None, {}):
            is_same = key in _FILLED_IN
        elif isinstance(value, list):
            is_same = [absolute(str(item)) for item in value] == pinned
        else:
            is_same = absolute(str(value)) == pinned or str(pinned).startswith(f"{value}@")
        if is_same:
            group, _, name = key.rpartition(".")
            (resumed[group] if group else resumed)[name] = pinned


def is_fixed(key: str) -> bool:
    """Whether a key says what run it is."""
    return _is_among(key, _FIXED)


def is_harmless(key: str) -> bool:
    """Whether a resumed run ends with the same weights whatever the key is."""
    return _is_among(key, _HARMLESS)


def _is_among(key: str, keys: Sequence[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)
