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
from mlmlab.evaluation.documents import DOCUMENTS, EVALUATION, DocumentLosses

CONFIG, SUMMARY = "config.yaml", "summary.json"

_OF_TRAINING = ("data.train_examples",)
_ADDRESSES = ("data.path", "data.url", "data.repository", "data.revision")
"""Keys of `data` that leave the test as it is; the latter where the fingerprints agree."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a run came to; or a checkpoint, in an evaluation that was kept."""

    folder: Path
    config: Mapping[str, Any]
    """How the weights came to be: the run's config by dotted keys, with tuples for lists. Nothing
    but the checkpoint, where that is not a run's folder."""
    asked: Mapping[str, Any]
    """The keys that decide what the evaluation asked."""
    figures: Mapping[str, Any]
    """Those of summary.json, and of an evaluation by the same names."""
    documents: DocumentLosses | None
    """None for a run of an earlier version."""

    @property
    def seed(self) -> int:
        """Which of several runs with the same setting it is."""
        return int(self.config.get("seed", 0))

    @property
    def loss(self) -> float:
        """Of the final evaluation, in nats per predicted token; nan if it predicted none."""
        loss = self.figures["eval_loss"]
        return math.nan if loss is None else float(loss)

    @property
    def test(self) -> str:
        """Equal for runs whose figures compare: those of the same test text, tokens and masks."""
        if self.documents is not None:
            return self.documents.test
        asked = {key: value for key, value in self.asked.items() if key not in _ADDRESSES}
        return json.dumps([asked, self.figures["eval_masked_tokens"]], sort_keys=True)


@dataclass(frozen=True)
class Found:
    """What there is in some folders."""

    runs: tuple[Run, ...]
    """The finished ones, and evaluations, in the order of their names."""
    unfinished: tuple[Path, ...]
    """Folders of runs without a summary."""


def find_runs(folders: Sequence[str | Path]) -> Found:
    """The runs in some folders, and in the folders below them.

    Args:
        folders: a run's, a sweep's, an evaluation's (out=DIR), or any with such folders in it.

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
    finished = [
        run_dir
        for run_dir in found.values()
        if (run_dir / SUMMARY).is_file() or (run_dir / EVALUATION).is_file()
    ]
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
        if CONFIG in files or EVALUATION in files:
            inner.clear()  # a run holds no other runs
            yield Path(here)


def _by_number(name: str) -> tuple[int, str]:
    """A sweep's jobs are numbered: 10 comes after 9."""
    number = name.partition("_")[0].partition("-")[0]
    return (int(number) if number.isdecimal() else 0, name)


def _read(folder: Path) -> Run:
    try:
        run = _read_run(folder) if (folder / CONFIG).is_file() else _read_evaluation(folder)
        _ = run.seed, run.loss, run.test
    except (OSError, YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError.of(
            str(folder),
            code=Code.CORRUPT,
            found=f"{type(error).__name__}: {error}",
            expected=f"{CONFIG} and {SUMMARY} of a run, or {EVALUATION}, as mlmlab writes them",
            remedy="report other folders, or move this one away",
        ) from error
    return run


def _read_run(run_dir: Path) -> Run:
    config = dict(_flat(OmegaConf.to_container(OmegaConf.load(run_dir / CONFIG))))
    summary = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    figures = summary | summary.get("own_figures", {})
    return Run(run_dir, config, _asked(config), figures, _documents(run_dir))


def _read_evaluation(folder: Path) -> Run:
    content = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    figures = {f"eval_{name}": value for name, value in content.items()} | content["own_figures"]
    asked, checkpoint = dict(_flat(content["config"])), content["checkpoint"]
    config = {"checkpoint": checkpoint}
    for run_dir in (Path(checkpoint), Path(checkpoint).parent):  # the latter for RUN_DIR/export
        if (run_dir / CONFIG).is_file():
            config = dict(_flat(OmegaConf.to_container(OmegaConf.load(run_dir / CONFIG))))
    return Run(folder, config, _asked(asked), figures, _documents(folder))


def _asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that decides what an evaluation asks."""
    asked = {
        key: value
        for key, value in config.items()
        if key.startswith(("data.", "tokenizer.", "eval.masking."))
        or key in ("eval.seed", "eval.mask_draws", "eval.max_examples", "eval.split")
    }
    for key in _OF_TRAINING:
        asked.pop(key, None)
    if not asked.get("tokenizer.path"):
        asked["checkpoint"] = config.get("checkpoint")  # which brings its own
    return asked


def _documents(folder: Path) -> DocumentLosses | None:
    return DocumentLosses.read(folder) if (folder / DOCUMENTS).is_file() else None


def _flat(mapping: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key, those of free mappings, too."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value
