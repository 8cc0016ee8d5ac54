"""Finished runs, read from their folders."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from mlmlab.errors import Code, UserError

CONFIG, SUMMARY = "config.yaml", "summary.json"

_ASKED = ("data.train_examples", "data.path", "data.url", "data.repository", "data.revision")
"""Keys of `data` that leave the test as it is, where the fingerprints agree."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a run came to."""

    folder: Path
    config: Mapping[str, Any]
    """config.yaml by dotted keys, with tuples for lists."""
    summary: Mapping[str, Any]
    """summary.json."""

    @property
    def seed(self) -> int:
        """Which of several runs with the same settings it is."""
        return int(self.config["seed"])

    @property
    def loss(self) -> float:
        """Of the final evaluation, in nats per predicted token; nan if it predicted none."""
        loss = self.summary["eval_loss"]
        return math.nan if loss is None else float(loss)

    @property
    def test(self) -> str:
        """Equal for runs whose figures compare: those of the same test text, tokens and masks."""
        deciding = {
            key: value
            for key, value in self.config.items()
            if key.startswith(("data.", "tokenizer.", "eval.masking."))
            or key in ("eval.seed", "eval.mask_draws", "eval.max_examples")
        }
        for key in _ASKED:
            deciding.pop(key, None)
        if not self.config.get("tokenizer.path"):
            deciding["checkpoint"] = self.config.get("checkpoint")  # brings its own
        return json.dumps([deciding, self.summary["eval_masked_tokens"]], sort_keys=True)


@dataclass(frozen=True)
class Found:
    """What there is in some folders."""

    runs: tuple[Run, ...]
    """The finished ones, in the order of their names."""
    unfinished: tuple[Path, ...]
    """The folders of runs without a summary."""


def find_runs(folders: Sequence[str | Path]) -> Found:
    """The runs in some folders, and in the folders below them.

    Args:
        folders: a run's own, a sweep's, or any that has such folders in it.

    Raises:
        UserError: there is no such folder, no finished run in any of them, or a damaged one.
    """
    found: dict[Path, Path] = {}  # by its absolute path: a folder may be given twice
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError.of(
                "RUNS_DIR",
                code=Code.NOT_FOUND,
                found=f"{folder}, which is no folder",
                expected="the folder of a run or of a sweep",
                remedy="one of those under runs/",
            )
        found |= {run_dir.resolve(): run_dir for run_dir in _run_folders(folder)}
    finished = [run_dir for run_dir in found.values() if (run_dir / SUMMARY).is_file()]
    unfinished = tuple(run_dir for run_dir in found.values() if run_dir not in finished)
    if not finished:
        raise UserError.of(
            "RUNS_DIR",
            code=Code.NOT_FOUND,
            found=f"{', '.join(map(str, folders))}: {len(unfinished)} runs, none of them finished",
            expected="at least one run with a summary.json",
            remedy="wait for a run to end; python -m mlmlab.train resume=RUN_DIR resumes one that "
            "was stopped",
        )
    return Found(tuple(map(_read, finished)), unfinished)


def _run_folders(folder: Path) -> Iterator[Path]:
    for here, inner, files in os.walk(folder):
        inner.sort(key=_by_number)
        if CONFIG in files:
            inner.clear()  # a run holds no other runs
            yield Path(here)


def _by_number(name: str) -> tuple[int, str]:
    """A sweep's jobs are numbered: 10 comes after 9."""
    number = name.partition("_")[0].partition("-")[0]
    return (int(number) if number.isdecimal() else 0, name)


def _read(run_dir: Path) -> Run:
    try:
        config = OmegaConf.to_container(OmegaConf.load(run_dir / CONFIG))
        summary = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
        run = Run(run_dir, dict(_flat(config)), summary)
        _ = run.seed, run.loss, run.test
    except (OSError, YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError.of(
            str(run_dir),
            code=Code.CORRUPT,
            found=f"{type(error).__name__}: {error}",
            expected=f"a run with the {CONFIG} and {SUMMARY} that mlmlab writes",
            remedy="report other folders, or move this one away",
        ) from error
    return run


def _flat(mapping: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key, those of free mappings, too."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value
