"""What several processes work on: the first one downloads and tokenizes, the others find it."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from mlmlab.config import EvaluateConfig, RunConfig
from mlmlab.data.corpus import Progress
from mlmlab.fetch.cache import absolute, local_path
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
        The pinned config (commits in place of branches, absolute paths, the texts' fingerprints);
        and what it names.
    """
    gathered: list[Found] = []

    def first() -> Config:
        with tokenization_bar(quiet=quiet) as show:
            found = gather(config, show)
        gathered.append(found)
        checkpoint = config.checkpoint if found.loaded is None else found.loaded.resolved
        tokenizer = dataclasses.replace(config.tokenizer, path=_absolute(found.tokenizer_path))
        return dataclasses.replace(
            config, checkpoint=_absolute(checkpoint), tokenizer=tokenizer, data=found.data
        )

    pinned = world.from_first(first)
    return pinned, gathered[0] if gathered else gather(pinned, None)


def _absolute(name: str | None) -> str | None:
    """A local path from any folder; a name on the Hub as it is."""
    return absolute(name) if name is not None and local_path(name) is not None else name
