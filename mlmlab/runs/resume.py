"""Going on with a run: whether its config allows it, and from which checkpoint."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmlab import schema
from mlmlab.config import RunConfig
from mlmlab.runs.folder import allowed_changes, is_fixed, read_snapshot
from mlmlab.training.state import ProgressRecord, newest_state


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
            "step": self.record.steps,
            "overrides": list(self.changes),
        }
        with (run_dir / "resumes.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def fingerprint(config: RunConfig) -> str:
    """Of all that a resumed run may not change; a replay of a step has the run's own."""
    fixed = {
        key: value for key, value in _flat(config).items() if is_fixed(key) and key != "debug.mode"
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
    changes = changes_of(config)
    found = newest_state(run_dir, fingerprint(config), tell)
    state, record = (None, ProgressRecord()) if found is None else found
    texts = tuple(f"{key}={schema.shown(value)}" for key, value in changes.items())
    return Resumption(state, record, texts)


def changes_of(config: RunConfig) -> dict[str, Any]:
    """What the config has in place of the values in the config.yaml of the run that goes on.

    Raises:
        UserError: a change that would make it another run.
    """
    assert config.resume is not None
    return allowed_changes(read_snapshot(Path(config.resume)), schema.to_mapping(config))


def _flat(config: RunConfig) -> dict[str, Any]:
    return schema.flat(schema.to_mapping(config))
