"""A run's config.yaml, and which of its keys say what run it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from mlmlab import schema
from mlmlab.config import DebugMode
from mlmlab.errors import Problem, UserError
from mlmlab.fetch.cache import absolute

_OF_THIS_COMMAND = ("resume", "debug.step", "debug.profile_steps")
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
    "model",
    "train.batch_size",
    "train.freeze",
    "eval.seed",
    "eval.mask_draws",
    "eval.max_examples",
    "eval.masking",
    "debug.mode",
)
"""Keys and groups that say what run it is."""


def read_snapshot(run_dir: Path) -> dict[str, Any]:
    """The content of a run's config.yaml.

    Raises:
        UserError: there is none, or it holds no keys.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError.of(
            "resume",
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
            found=f"{path}, which holds no keys",
            expected="the config.yaml that a run has written",
            remedy="resume=ANOTHER_RUN_DIR",
        )
    return {str(key): value for key, value in content.items()}


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
            f"without {key} to go on; python -m mlmlab.train without resume for a new run",
        )
        for key, value in changes.items()
        if is_fixed(key)
    ]
    if problems:
        raise UserError(problems)
    return changes


_FILLED_IN = ("data.revision", "data.fingerprint", "data.eval_fingerprint")
_PINNED = ("checkpoint", "tokenizer.path", "data.path", "data.eval_path", *_FILLED_IN)


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
        if value is None:
            is_same = key in _FILLED_IN
        else:
            is_same = absolute(str(value)) == pinned or str(pinned).startswith(f"{value}@")
        if is_same:
            group, _, name = key.rpartition(".")
            (resumed[group] if group else resumed)[name] = pinned


def is_fixed(key: str) -> bool:
    """Whether a key says what run it is."""
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in _FIXED)
