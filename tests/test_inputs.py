"""Which documents a run trains on and scores, and what an evaluation takes from a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from refusals import refusal

import mlmlab
from mlmlab.data.blocks import SampledBlocks
from mlmlab.data.corpus import Shard
from mlmlab.errors import Code
from mlmlab.evaluation.config import Split
from mlmlab.runs import setup as inputs_module
from mlmlab.runs.setup import Inputs, set_up, set_up_evaluation

SMALL = ("data=text", "data.block_size=16", "tokenizer.vocabulary_size=300")


def texts(name: str, count: int) -> list[str]:
    return [f"{name} number {n} of {count} texts that say little" for n in range(count)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, count in (("main", 60), ("held", 20), ("other", 7)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts(name, count)))
    return tmp_path


def documents(inputs: Inputs, shard: Shard) -> list[str]:
    """A shard's documents as text."""
    return [
        inputs.tokenizer.decode(shard.tokens[begin : begin + size].tolist())
        for begin, size in zip(shard.begins, np.diff(shard.offsets), strict=True)
    ]


def test_text_of_its_own_for_the_test_leaves_all_other_text_for_training(files: Path) -> None:
    inputs = set_up(mlmlab.compose(*SMALL, "data.path=main.txt", "data.eval_path=held.txt"))
    assert documents(inputs, inputs.train.shard) == texts("main", 60)
    assert documents(inputs, inputs.test.shard) == texts("held", 20)
    assert inputs.text.corpus.test.documents == 0
    assert inputs.data.test_fraction == 0.2  # as it stands in config.yaml


def test_several_files_and_globs_are_one_text_and_each_file_is_read_once(files: Path) -> None:
    inputs = set_up(
        mlmlab.compose(*SMALL, "data.path=[other.txt,m*.txt,main.txt]", "data.eval_path=[held.txt]")
    )
    assert documents(inputs, inputs.train.shard) == texts("other", 7) + texts("main", 60)
    assert documents(inputs, inputs.test.shard) == texts("held", 20)
    assert inputs.data.path == tuple(
        str(files / name) for name in ("other.txt", "m*.txt", "main.txt")
    )
    assert inputs.data.eval_path == (str(files / "held.txt"),)


def test_a_run_on_several_files_is_resumed_by_the_names_they_were_given(files: Path) -> None:
    keys = ("data.path=[main.txt,other.txt]", "data.train_examples=20", "data.test_examples=5")
    small = (*SMALL, *keys, "model.hidden_size=32", "train.max_steps=1", "runtime.threads=1")
    first = mlmlab.run(mlmlab.compose(*small, "run_dir=run"), quiet=True).summary
    report = mlmlab.evaluate_checkpoint(mlmlab.compose_evaluation("checkpoint=run"), quiet=True)
    assert report.evaluation.loss == first.eval_loss
    assert report.examples == 5
    resumed = mlmlab.compose("resume=run", *keys, "train.max_steps=2")
    assert mlmlab.run(resumed, quiet=True).summary.steps == 2
    for key in ("data.train_examples=21", "data.path=[other.txt,main.txt]"):
        with refusal(key.partition("=")[0], Code.CHANGED):
            mlmlab.compose("resume=run", key)


def test_a_sample_belongs_to_the_data_seed_alone(files: Path) -> None:
    def chosen(*keys: str) -> list[list[int]]:
        sampled = ("data.path=main.txt", "data.eval_path=held.txt", "data.test_examples=5")
        inputs = set_up(mlmlab.compose(*SMALL, *sampled, "data.train_examples=20", *keys))
        assert isinstance(inputs.train, SampledBlocks)
        assert isinstance(inputs.test, SampledBlocks)
        return [inputs.train.chosen.tolist(), inputs.test.chosen.tolist()]

    first = chosen()
    assert [len(side) for side in first] == [20, 5]
    assert chosen("seed=1", "train.batch_size=3") == first
    other = chosen("data.seed=1")
    assert other[0] != first[0]
    assert other[1] != first[1]


def test_the_limit_is_one_of_the_training_text(files: Path) -> None:
    inputs = set_up(
        mlmlab.compose(*SMALL, "data.path=main.txt", "data.eval_path='h*.txt'", "data.limit=10")
    )
    assert documents(inputs, inputs.train.shard) == texts("main", 60)[:10]
    assert documents(inputs, inputs.test.shard) == texts("held", 20)


def test_without_it_every_document_is_on_one_side(files: Path) -> None:
    inputs = set_up(mlmlab.compose(*SMALL, "data.path=main.txt"))
    train, test = (documents(inputs, side.shard) for side in (inputs.train, inputs.test))
    assert sorted(train + test) == sorted(texts("main", 60))
    assert 0 < len(test) < len(train)


def test_a_trained_tokenizer_belongs_to_the_split_and_to_the_package_that_trained_it(
    files: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> set[str]:
        return {path.name for path in (fresh_cache / "tokenizers").iterdir() if path.is_dir()}

    for _ in range(2):
        set_up(mlmlab.compose(*SMALL, "data.path=main.txt"))
        assert len(trained()) == 1
    set_up(mlmlab.compose(*SMALL, "data.path=main.txt", "data.seed=1"))
    assert len(trained()) == 2
    monkeypatch.setattr(inputs_module, "version", lambda _: "0.0.1")
    set_up(mlmlab.compose(*SMALL, "data.path=main.txt"))
    assert len(trained()) == 3


@pytest.mark.parametrize(
    ("options", "is_warned_of"),
    [
        ((), True),
        (("data.document=paragraph",), False),
        (("data.path=long.txt",), False),
        (("data.path=main.jsonl",), False),
    ],
)
def test_short_lines_as_documents_are_warned_of(
    files: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], is_warned_of: bool
) -> None:
    (files / "long.txt").write_text("\n".join(" ".join(texts("long", 9)) for _ in range(60)))
    rows = [json.dumps({"text": text}) for text in texts("main", 60)]
    (files / "main.jsonl").write_text("\n".join(rows))
    config = mlmlab.compose(
        *SMALL, "data.path=main.txt", "tokenizer.vocabulary_size=600", "data.eval_path=held.txt",
        "train.max_steps=1", "model.hidden_size=32", "runtime.threads=1", *options,
    )  # fmt: skip
    corpus = set_up(config).text.corpus
    lengths = np.diff(corpus.train.offsets)
    assert corpus.median_document_tokens == np.median(lengths)
    (files / "held.txt").write_text("\n".join(" ".join(texts("held", 9)) for _ in range(9)))
    mlmlab.run(config)
    assert ("warning" in capsys.readouterr().out) == is_warned_of


@pytest.fixture
def run(files: Path) -> Path:
    """A finished run on main.txt."""
    config = mlmlab.compose(
        *SMALL, "data.path=main.txt", "data.test_fraction=0.3", "eval.masking.rate=0.25",
        "eval.seed=5", "eval.mask_draws=2", "model.hidden_size=32", "train.max_steps=1",
        "run_dir=run", "runtime.threads=1",
    )  # fmt: skip
    mlmlab.run(config, quiet=True)
    return files / "run"


def test_an_evaluation_of_a_run_takes_its_data_masking_and_masks(run: Path) -> None:
    config = mlmlab.compose_evaluation("checkpoint=run")
    assert (config.data.path, config.data.block_size) == (str(run.parent / "main.txt"), 16)
    assert (config.eval.masking.rate, config.eval.seed, config.eval.mask_draws) == (0.25, 5, 2)
    assert config.eval.split is Split.TEST
    inputs = set_up_evaluation(config)
    assert inputs.test.shard.documents < 60
    changed = mlmlab.compose_evaluation(
        "checkpoint=run", "masking@eval.masking=forty_percent", "eval.seed=9"
    )
    assert (changed.eval.masking.rate, changed.eval.seed) == (0.4, 9)
    assert changed.data.path == config.data.path


@pytest.mark.parametrize("named", ["data.path=other.txt", "data.path=main.txt"])
def test_text_that_the_user_names_is_scored_whole(run: Path, named: str) -> None:
    config = mlmlab.compose_evaluation("checkpoint=run", named)
    assert config.eval.split is Split.ALL
    inputs = set_up_evaluation(config)
    assert inputs.test.shard.documents == (7 if "other" in named else 60)
    assert inputs.test.dropped_tokens == 0


def test_the_split_that_the_user_asks_for_is_the_one_that_is_scored(run: Path) -> None:
    whole = mlmlab.compose_evaluation("checkpoint=run", "eval.split=all")
    assert set_up_evaluation(whole).test.shard.documents == 60
    part = mlmlab.compose_evaluation("checkpoint=run", "data.path=main.txt", "eval.split=test")
    assert 0 < set_up_evaluation(part).test.shard.documents < 60


def test_a_runs_tokenizer_is_found_by_the_runs_folder(run: Path) -> None:
    inputs = set_up(mlmlab.compose(*SMALL, "data.path=other.txt", f"tokenizer.path={run}"))
    export = set_up_evaluation(mlmlab.compose_evaluation("checkpoint=run")).tokenizer
    assert inputs.tokenizer.fingerprint() == export.fingerprint()


def test_a_report_counts_what_was_scored(run: Path) -> None:
    config = mlmlab.compose_evaluation("checkpoint=run", "data.path=other.txt", "data.layout=lines",
                                       "data.block_size=9")  # fmt: skip
    report = mlmlab.evaluate_checkpoint(config, quiet=True).to_mapping()
    assert report["documents"] == report["examples"] == 7
    assert report["dropped_tokens"] > 0
    assert report["mask_draws"] == 2
    parts = [report[name]["masked_tokens"] for name in ("masked", "random", "kept")]
    assert sum(parts) == report["masked_tokens"]
