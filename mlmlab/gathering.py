"""What several processes work on: the first one downloads and tokenizes, the others find it."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from mlmlab.config import EvaluateConfig, RunConfig
from mlmlab.data.corpus import Progress
from mlmlab.inputs import EvaluationInputs
from mlmlab.processes import World
from mlmlab.tracking.progress import tokenization_bar

Config = TypeVar("Config", RunConfig, EvaluateConfig)
Found = TypeVar("Found", bound=EvaluationInputs)


def gather_in_turn(
    config: Config,
    world: World,
    gather: Callable[[Config, Progress | None], Found],
    *,
    quiet: bool,
) -> tuple[Config, Found]:
    """Has the first process gather what a config names, and then the others.

    Args:
        gather: does so in one process.
        quiet: show no progress.

    Returns:
        The config, with commits in place of the branches of checkpoint and data set; and what it
        names.
    """
    gathered: list[Found] = []

    def first() -> Config:
        with tokenization_bar(quiet=quiet) as show:
            found = gather(config, show)
        gathered.append(found)
        checkpoint = config.checkpoint if found.loaded is None else found.loaded.resolved
        return dataclasses.replace(config, checkpoint=checkpoint, data=found.data)

    pinned = world.from_first(first)
    return pinned, gathered[0] if gathered else gather(pinned, None)
