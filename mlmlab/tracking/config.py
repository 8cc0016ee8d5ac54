"""Where a run's figures go."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlmlab import seams
from mlmlab.errors import Problem
from mlmlab.schema import listed

TENSORBOARD, JSONL = "tensorboard", "jsonl"


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """The sinks of a run, on rank 0."""

    sinks: tuple[str, ...] = listed(TENSORBOARD, JSONL)
    """tensorboard (event files), jsonl (metrics.jsonl), and a custom package.module:name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of custom sinks: a mapping for each, by what follows its colon."""

    def problems(self) -> Iterator[Problem]:
        """No metrics.jsonl, a sink twice, and options of none."""
        yield from seams.list_problems(
            "tracking.sinks",
            self.sinks,
            "tracking.options",
            self.options,
            needed=JSONL,
            because="metrics.jsonl is the run's own record of its figures",
        )
