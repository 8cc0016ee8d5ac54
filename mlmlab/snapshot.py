"""A run's config.yaml, and which of its keys say what run it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from mlmlab import schema
from mlmlab.config import DebugMode
from mlmlab.errors import Problem, UserError

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
    "eval.split",
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


def is_fixed(key: str) -> bool:
    """Whether a key says what run it is."""
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in _FIXED)
