"""Resuming a run: from which checkpoint, and with which changes (`folder.py` has the rules)."""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlmlab import schema
from mlmlab.config import RunConfig
from mlmlab.runs.folder import allowed_changes, is_fixed, read_snapshot
from mlmlab.training.state import ProgressRecord, newest_state


@dataclass(frozen=True)
class Start:
    """Where this process takes up a run."""

    state: Path | None = None
    """The checkpoint's folder; None: at the beginning."""
    record: ProgressRecord = field(default_factory=ProgressRecord)
    changes: tuple[str, ...] = ()
    """KEY=VALUE for all that is not as in the run's config.yaml."""
    passed_over: tuple[str, ...] = ()
    """A line about each damaged checkpoint that is newer."""

    def note(self, run_dir: Path) -> None:
        """Adds a line to the run's resumes.jsonl."""
        event = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "step": self.record.steps,
            "overrides": list(self.changes),
        }
        with (run_dir / "resumes.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def fingerprint(config: RunConfig) -> str:
    """Of all that a resumed run may not change; a replay of a step has the run's own."""
    fixed = {
        key: value
        for key, value in schema.flat(schema.to_mapping(config)).items()
        if is_fixed(key) and key != "debug.mode"
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def newest_checkpoint(config: RunConfig) -> Start:
    """The newest complete checkpoint of the run that `config.resume` names.

    Args:
        config: the run's own, with the changes.

    Raises:
        UserError: a change that would make it another run.
    """
    assert config.resume is not None
    changes = tuple(f"{key}={schema.shown(value)}" for key, value in changes_of(config).items())
    passed_over: list[str] = []
    found = newest_state(Path(config.resume), fingerprint(config), passed_over.append)
    state, record = found or (None, ProgressRecord())
    return Start(state, record, changes, tuple(passed_over))


def changes_of(config: RunConfig) -> dict[str, Any]:
    """What differs from the config.yaml of the run that is resumed.

    Raises:
        UserError: a change that would make it another run.
    """
    assert config.resume is not None
    return allowed_changes(read_snapshot(Path(config.resume)), schema.to_mapping(config))
