"""A run resumes with its folder and its text alone, wherever the folder is and whatever is gone."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ranks import forked_to_the_end
from refusals import check, refusal
from stopping import TINY, as_killed, bits, listing

import mlmlab
from mlmlab.data.sources import SmallWorldSource
from mlmlab.errors import Code, UserError
from mlmlab.runs.replay import replay

SMALL = (
    *(key for key in TINY if not key.startswith(("model.", "data."))),
    "data.block_size=32",
    "train.log_every_steps=1",
)
SCRATCH = tuple(key for key in TINY if key.startswith("model."))


@dataclass(frozen=True)
class Place:
    """A folder with a text, a checkpoint, a tokenizer, and finished runs that began with them."""

    folder: Path

    @property
    def corpora(self) -> Path:
        return self.folder / "cache" / "corpora"


BEGINNINGS = {
    "checkpoint": ("model=from_checkpoint", "checkpoint={}/origin", "model.dropout=0.1"),
    "checkpoint and tokenizer": (
        "model=from_checkpoint",
        "checkpoint={}/origin",
        "tokenizer.path={}/tokenizer",
    ),
    "tokenizer": (*SCRATCH, "tokenizer.path={}/tokenizer"),
    "text": (*SCRATCH, "tokenizer.kind=wordpiece", "tokenizer.vocabulary_size=350"),
}
"""What a run may begin with, besides its text."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLMLAB_CACHE", str(folder / "cache"))
        text = "\n".join(SmallWorldSource(400).documents(None))
        (folder / "text.txt").write_text(text + "\n")
        data = f"data.path={folder}/text.txt"
        origin = (*SCRATCH, "tokenizer.kind=wordpiece", "tokenizer.vocabulary_size=330")
        mlmlab.run(
            mlmlab.compose(
                "data=text", data, *SMALL, *origin, "train.max_steps=5", f"run_dir={folder}/first"
            ),
            quiet=True,
        )
        shutil.copytree(folder / "first" / "export", folder / "origin")
        shutil.copytree(folder / "first" / "export", folder / "tokenizer")
        (folder / "runs").mkdir()
        for name, keys in BEGINNINGS.items():
            chosen = [key.format(folder) for key in keys]
            run_dir = f"run_dir='{folder}/runs/{name}'"
            mlmlab.run(mlmlab.compose("data=text", data, *SMALL, *chosen, run_dir), quiet=True)
        yield Place(folder)


@pytest.fixture
def emptied(place: Place) -> Iterator[Place]:
    """The place without all that its runs began with but the text."""
    names = ("origin", "tokenizer", "first", "cache/tokenizers")
    for name in names:
        (place.folder / name).rename(place.folder / f"{name}-elsewhere")
    yield place
    for name in names:
        (place.folder / f"{name}-elsewhere").rename(place.folder / name)


@pytest.mark.parametrize("name", BEGINNINGS)
def test_what_a_run_began_with_need_not_be_there_any_more_and_nothing_is_tokenized_again(
    emptied: Place, tmp_path: Path, name: str
) -> None:
    whole = emptied.folder / "runs" / name
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45])
    corpora = listing(emptied.corpora)
    mlmlab.run(mlmlab.compose(f"resume={run_dir}"), quiet=True)
    assert bits(run_dir) == bits(whole)
    assert listing(emptied.corpora) == corpora
    card = (run_dir / "export" / "README.md").read_text()
    assert card == (whole / "export" / "README.md").read_text()


def test_several_processes_go_on_without_it_too(emptied: Place, tmp_path: Path) -> None:
    whole = emptied.folder / "runs" / "checkpoint and tokenizer"
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45])
    forked_to_the_end(tmp_path, "resume=run")
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 60


def test_a_step_is_replayed_without_it_too(emptied: Place) -> None:
    whole = emptied.folder / "runs" / "checkpoint and tokenizer"
    lines = map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
    config = mlmlab.compose(f"resume='{whole}'", "debug=replay", "debug.step=56")
    assert replay(config, quiet=True).loss == next(
        line["train/loss"] for line in lines if line["step"] == 56
    )


def test_without_a_whole_checkpoint_a_run_starts_from_what_it_began_with(
    place: Place, tmp_path: Path
) -> None:
    whole = place.folder / "runs" / "checkpoint and tokenizer"
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[])
    mlmlab.run(mlmlab.compose(f"resume={run_dir}"), quiet=True)
    assert bits(run_dir) == bits(whole)


def test_without_a_whole_checkpoint_and_what_it_began_with_that_is_named(
    emptied: Place, tmp_path: Path
) -> None:
    whole = emptied.folder / "runs" / "checkpoint"
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[])
    with refusal("checkpoint", Code.NOT_FOUND, emptied.folder / "origin"):
        mlmlab.run(mlmlab.compose(f"resume={run_dir}"), quiet=True)


def test_without_its_text_a_run_is_not_told_to_take_another(place: Place, tmp_path: Path) -> None:
    run_dir = as_killed(place.folder / "runs" / "checkpoint", tmp_path / "run", checkpoints=[45])
    text = next(place.folder.glob("*.txt"))
    text.rename(text.with_suffix(".away"))
    try:
        with pytest.raises(UserError) as error:
            mlmlab.run(mlmlab.compose(f"resume={run_dir}"), quiet=True)
    finally:
        text.with_suffix(".away").rename(text)
    (problem,) = error.value.problems
    check(problem, "data.path", Code.NOT_FOUND, text)
    assert "data.path=" not in problem.remedy


@pytest.mark.parametrize("how", ["resume={}", "run_dir={} resume=auto"])
def test_a_run_whose_folder_was_moved_goes_on_where_it_is(
    emptied: Place, tmp_path: Path, how: str
) -> None:
    whole = emptied.folder / "runs" / "checkpoint"
    away = whole.with_name("away")
    run_dir = as_killed(whole, tmp_path / "elsewhere" / "run", checkpoints=[30, 45])
    whole.rename(away)
    try:
        summary = mlmlab.run(mlmlab.compose(*how.format(run_dir).split()), quiet=True).summary
        replay(mlmlab.compose(f"resume={run_dir}", "debug=replay", "debug.step=50"), quiet=True)
        assert not whole.exists()
    finally:
        away.rename(whole)
    assert summary.run_dir == str(run_dir)
    assert bits(run_dir) == bits(whole)
