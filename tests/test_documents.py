"""Text from Python: mlmlab.run(config, documents=[...]) is the same run as on a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from refusals import refusal
from stopping import TINY, as_killed, bits

import mlmlab
from mlmlab.data.sources import PassedDocuments
from mlmlab.errors import Code
from mlmlab.runs import run
from mlmlab.runs.replay import Replay

TEXTS = [f"the {n}th of many lines says {n * n} and {n % 7}" for n in range(300)]
KEYS = (
    *(key for key in TINY if not key.startswith("data.")),
    "data=text", "data.block_size=16", "tokenizer.vocabulary_size=300", "train.max_steps=6",
    "train.save_every_steps=3", "eval.every_steps=null", "model.dropout=0.0",
)  # fmt: skip
FROM_PYTHON = (*KEYS, "data.source=documents")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the texts."""
    run_dir = tmp_path_factory.mktemp("documents") / "run"
    mlmlab.run(mlmlab.compose(*FROM_PYTHON, f"run_dir={run_dir}"), documents=TEXTS, quiet=True)
    return run_dir


def test_documents_give_the_bits_of_a_file_with_the_same_lines(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("\n".join(TEXTS))
    keys = (*KEYS, f"data.path={tmp_path / 'my.txt'}", f"run_dir={tmp_path / 'run'}")
    mlmlab.run(mlmlab.compose(*keys), quiet=True)
    for name in ("export/model.safetensors", "export/tokenizer.json"):
        assert (whole / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_any_iterable_will_do_and_is_tokenized_once(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = mlmlab.compose(*FROM_PYTHON, f"run_dir={tmp_path / 'run'}")
    again = mlmlab.run(config, documents=(text for text in TEXTS))
    assert "documents from Python: 300 documents" in capsys.readouterr().out.replace("\n", " ")
    assert again.summary.eval_loss == json.loads((whole / "summary.json").read_text())["eval_loss"]
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").data.source == "documents"


def test_a_resume_with_the_same_documents_ends_with_the_same_bits(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[3])
    mlmlab.run(mlmlab.compose(f"resume={run_dir}"), documents=iter(TEXTS), quiet=True)
    assert bits(run_dir) == bits(whole)


def test_a_resume_with_other_documents_or_with_none_is_refused(whole: Path, tmp_path: Path) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[3])
    config = mlmlab.compose(f"resume={run_dir}")
    with refusal("documents", Code.CHANGED):
        mlmlab.run(config, documents=[*TEXTS[:-1], "another"], quiet=True)
    with refusal("documents", Code.MISSING, "mlmlab.run(config, documents="):
        mlmlab.run(config, quiet=True)


def test_where_a_document_ends_is_part_of_the_fingerprint() -> None:
    prints = {
        PassedDocuments(texts, None).text_fingerprint()
        for texts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""))
    }
    assert len(prints) == 4


def test_a_replay_and_an_evaluation_take_them_too(whole: Path) -> None:
    config = mlmlab.compose(f"resume={whole}", "debug=replay", "debug.step=5")
    replayed = mlmlab.run(config, documents=TEXTS, quiet=True)
    assert isinstance(replayed, Replay)
    own = mlmlab.compose_evaluation(f"checkpoint={whole}")
    report = mlmlab.evaluate_checkpoint(own, documents=TEXTS, quiet=True)
    summary = json.loads((whole / "summary.json").read_text())
    assert report.evaluation.loss == summary["eval_loss"]
    other = mlmlab.compose_evaluation(
        f"checkpoint={whole / 'export'}", "data.source=documents", "data.block_size=16"
    )
    assert mlmlab.evaluate_checkpoint(other, documents=TEXTS[:40], quiet=True).documents == 40


def test_the_processes_of_a_run_get_them(whole: Path, tmp_path: Path) -> None:
    keys = (*FROM_PYTHON, "runtime.processes=2", f"run_dir={tmp_path / 'run'}")
    result = mlmlab.run(mlmlab.compose(*keys), documents=TEXTS, quiet=True)
    alone = json.loads((whole / "summary.json").read_text())
    assert result.summary.world_size == 2
    assert result.summary.eval_loss == pytest.approx(alone["eval_loss"], rel=1e-5)
    assert not result.model.training


def test_documents_and_a_config_that_names_other_text_are_refused(tmp_path: Path) -> None:
    config = mlmlab.compose(f"run_dir={tmp_path / 'run'}")
    with refusal("documents", Code.CONFLICT, "data.source=builtin", "data.source=documents"):
        run(config, documents=TEXTS, quiet=True)
    assert not (tmp_path / "run").exists()


def _numbers() -> Iterator[int]:
    yield from range(3)


@pytest.mark.parametrize(
    ("documents", "named"),
    [
        ("one text", "one text"),
        (b"bytes", "bytes"),
        (3, "a number: 3"),
        (["a", 3], "documents[1] is a number: 3"),
        (["a", None], "documents[1] is null"),
        (_numbers(), "documents[0]"),
        (["a", "b", "half \ud800"], "documents[2]"),
    ],
)
def test_what_is_no_iterable_of_texts_is_refused(
    documents: Any, named: str, tmp_path: Path
) -> None:
    config = mlmlab.compose(*FROM_PYTHON, f"run_dir={tmp_path / 'run'}")
    with refusal("documents", Code.WRONG_TYPE, named):
        mlmlab.run(config, documents=documents, quiet=True)
    assert not (tmp_path / "run").exists()
