"""Going on with a run: whether its config allows it, and from which checkpoint."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mlmlab import schema
from mlmlab.config import DebugMode, RunConfig
from mlmlab.errors import Problem, UserError
from mlmlab.training.state import ProgressRecord, newest_state

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


@dataclass(frozen=True)
class Resumption:
    """Where a run goes on."""

    state: Path | None
    """The checkpoint's folder; None: there is no whole one, and the run starts anew."""
    record: ProgressRecord
    changes: tuple[str, ...]
    """KEY=VALUE for all that is not as in the run's config.yaml."""

    def note(self, run_dir: Path) -> None:
        """Adds a line to the run's resumes.jsonl."""
        event = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "step": self.record.updates,
            "overrides": list(self.changes),
        }
        with (run_dir / "resumes.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def fingerprint(config: RunConfig) -> str:
    """Of all that a resumed run may not change; a replay of an update has the run's own."""
    fixed = {
        key: value for key, value in _flat(config).items() if _is_fixed(key) and key != "debug.mode"
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def find_resumption(config: RunConfig, tell: Callable[[str], None]) -> Resumption:
    """Looks for the newest whole checkpoint of the run that `config.resume` names.

    Args:
        config: the run's own, with the changes.
        tell: gets a line about each damaged checkpoint that was passed over.

    Raises:
        UserError: a change that would make it another run.
    """
    assert config.resume is not None
    run_dir = Path(config.resume)
    changes = changed_keys(config, run_dir)
    check_changes(config, changes)
    found = newest_state(run_dir, fingerprint(config), tell)
    state, record = (None, ProgressRecord()) if found is None else found
    texts = tuple(f"{key}={schema.shown(value)}" for key, value in changes.items())
    return Resumption(state, record, texts)


def changed_keys(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """What the config has in place of the values in the run's config.yaml."""
    content = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    assert isinstance(content, dict)
    if config.debug.mode is DebugMode.REPLAY:
        content["debug"]["mode"] = DebugMode.REPLAY.value
    before, now = schema.flat({str(key): value for key, value in content.items()}), _flat(config)
    return {
        key: value
        for key, value in now.items()
        if key not in _OF_THIS_COMMAND and before.get(key) != value
    }


def check_changes(config: RunConfig, changes: dict[str, Any]) -> None:
    """Refuses those that would make it another run.

    Raises:
        UserError: each of them by name.
    """
    problems = [
        Problem(
            key,
            f"{key}={schema.shown(value)}, for a run that began with another",
            "what the run began with: this key is part of what the run is",
            f"without {key} to go on; python -m mlmlab.train without resume for a new run",
        )
        for key, value in changes.items()
        if _is_fixed(key)
    ]
    if problems:
        raise UserError(problems)


def _is_fixed(key: str) -> bool:
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in _FIXED)


def _flat(config: RunConfig) -> dict[str, Any]:
    return schema.flat(schema.to_mapping(config))
