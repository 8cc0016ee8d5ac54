"""Finished runs compared: from their folders to the table, the page and the csv."""

import csv
import json
import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from refusals import refusal
from stopping import SMALLEST

import mlmlab
from mlmlab import analysis, evaluate, report, schema
from mlmlab.analysis.runs import find_runs
from mlmlab.analysis.settings import comparisons
from mlmlab.errors import Code
from mlmlab.evaluation.documents import DOCUMENTS, DocumentLosses

Write = Callable[..., Path]
SHORT = (*SMALLEST, "train.max_steps=6", "eval.every_steps=3", "eval.fill_mask=[]")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the folder of a finished run that never was."""

    def write_run(name: str, loss: float, *overrides: str, test: str | None = "asked") -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = schema.to_mapping(mlmlab.compose(*overrides))
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        summary: dict[str, Any] = {
            "eval_loss": loss, "eval_perplexity": math.exp(loss), "eval_masked_tokens": 60,
            "steps": 100, "tokens": 6400, "seconds": 1.5, "own_figures": {"eval/pairs/found": 3},
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
        if test is not None:
            counts = np.array([10, 20, 30])
            DocumentLosses(loss * counts + [0.1, 0.2, -0.3], counts, test).write(folder)
        return folder

    return write_run


def lines(tmp_path: Path) -> list[str]:
    return analysis.table([tmp_path / "runs"]).splitlines()


def test_runs_are_grouped_by_what_varies_and_averaged_over_seeds(
    write: Write, tmp_path: Path
) -> None:
    for seed, losses in enumerate([(1.0, 1.2), (1.1, 1.3), (1.05, 1.28)]):
        for rate, loss in zip((0.15, 0.3), losses, strict=True):
            write(f"{seed}_{rate}", loss, f"seed={seed}", f"masking.rate={rate}", f"name=n{seed}")
    table = lines(tmp_path)
    assert table[:3] == [
        "masking.rate     perplexity  seeds",
        "0.15          2.858 ± 0.082      3  best",
        "0.3             3.53 ± 0.11      3",
    ]
    assert "masking.rate=0.15 is better than masking.rate=0.3" in " ".join(table)
    assert max(map(len, table)) <= 80


def test_a_run_is_found_once_wherever_it_lies(write: Write, tmp_path: Path) -> None:
    folders = [write(f"a/{number}", 1.0, f"seed={number}") for number in (0, 2, 10)]
    found = find_runs([tmp_path, folders[0], tmp_path / "runs" / "a"])
    assert [run.seed for run in found.runs] == [0, 2, 10]


def test_a_run_that_has_not_finished_is_named_and_left_out(write: Write, tmp_path: Path) -> None:
    write("done", 1.0)
    (write("stopped", 1.0, "seed=1") / "summary.json").unlink()
    assert lines(tmp_path)[-1].endswith("/runs/stopped")
    assert len(find_runs([tmp_path]).runs) == 1


def test_a_repeated_run_counts_once(write: Write, tmp_path: Path) -> None:
    for name in ("1", "2"):
        write(name, float(name), "seed=4")
    (comparison,) = comparisons(find_runs([tmp_path]).runs)
    assert [run.folder.name for run in comparison.repeated] == ["1"]
    assert comparison.settings[0].sample.losses == {4: 2.0}


def test_keys_that_change_one_for_one_are_told_as_one(write: Write, tmp_path: Path) -> None:
    write("a", 1.0, "masking.unit=token", "train.batch_size=8")
    write("b", 1.1, "masking.unit=word", "train.batch_size=16")
    write("c", 1.2, "masking.unit=word", "train.batch_size=16", "seed=1")
    (comparison,) = comparisons(find_runs([tmp_path]).runs)
    assert len(comparison.keys) == 1
    assert {*comparison.keys, *comparison.following} == {"masking.unit", "train.batch_size"}
    assert any("with " in line and " vary: " in line for line in lines(tmp_path))


def test_keys_that_a_sweep_varies_are_all_shown(write: Write, tmp_path: Path) -> None:
    for name, unit, size in (("a", "token", 8), ("b", "word", 16)):
        folder = write(name, 1.0, f"masking.unit={unit}", f"train.batch_size={size}")
        config = OmegaConf.load(folder / "config.yaml")
        config["varies"] = ["train.batch_size", "masking.unit"]
        OmegaConf.save(config, folder / "config.yaml")
    (comparison,) = comparisons(find_runs([tmp_path]).runs)
    assert sorted(comparison.keys) == ["masking.unit", "train.batch_size"]


@pytest.mark.parametrize("test", ["asked", None])
def test_what_does_not_compare_stands_in_tables_of_its_own(
    write: Write, tmp_path: Path, test: str | None
) -> None:
    write("a", 1.0, "seed=0", test=test)
    write("b", 1.1, "seed=1", "train.learning_rate=1e-4", test=test)
    write("c", 1.2, "seed=0", "eval.masking.rate=0.3", test=test and "other")
    table = analysis.table([tmp_path])
    assert table.startswith("2 tables: ")
    assert "test 1: eval.masking.rate=0.15\n" in table
    assert "test 2: eval.masking.rate=0.3\n" in table
    assert table.count("best") == 0  # no two runs with a seed in common


def test_a_training_text_is_a_setting_where_the_test_is_the_same(
    write: Write, tmp_path: Path
) -> None:
    for seed in (0, 1):
        for name, gap in (("a.txt", 0.0), ("b.txt", 0.1)):
            keys = ("data=text", f"data.path={name}", "data.eval_path=test.txt", f"seed={seed}")
            write(f"{name}{seed}", 1.0 + gap * (seed + 1), *keys)
    (comparison,) = comparisons(find_runs([tmp_path]).runs)
    assert comparison.keys == ("data.path",)


def test_long_settings_fit_into_eighty_columns(write: Write, tmp_path: Path) -> None:
    path = "a_long_name_of_a_module." * 2
    for number in range(3):
        write(
            f"{number}", 1.0 + number, f"masking.unit={path}ideas:Every{number}",
            f"train.learning_rate={number + 1}e-4", f"train.weight_decay=0.{number + 1}",
        )  # fmt: skip
    table = lines(tmp_path)
    assert max(map(len, table)) <= 80
    assert any(f"Every{number}" in line for number in range(3) for line in table)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rates and two seeds, trained."""
    folder = tmp_path_factory.mktemp("sweep")
    for number, (seed, rate) in enumerate([(0, 0.15), (0, 0.4), (1, 0.15), (1, 0.4)]):
        keys = (*SHORT, f"seed={seed}", f"masking.rate={rate}", f"run_dir={folder}/{number}")
        mlmlab.run(mlmlab.compose(*keys), quiet=True)
    return folder


class Page(HTMLParser):
    """What a browser would load, and what it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_has_a_row_for_each_run_and_a_page_that_needs_no_network(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    report.main([str(sweep), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:5])) <= 80
    names = {
        "perplexity_by_step.png", "perplexity_by_tokens.png", "perplexity_by_seconds.png",
        "final_perplexity_by_masking.rate.png",
    }  # fmt: skip
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"report.csv", "report.md", "report.html", *names}
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["masking.rate"]) for row in rows] == [
        ("0", "0.15"), ("1", "0.15"), ("0", "0.4"), ("1", "0.4"),
    ]  # fmt: skip
    summaries = [json.loads((sweep / n / "summary.json").read_text()) for n in ("0", "2", "1", "3")]
    assert [float(row["eval_loss"]) for row in rows] == [s["eval_loss"] for s in summaries]
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert len(page.sources) == len(names)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search("https?://", html)
    markdown = (tmp_path / "report.md").read_text()
    assert all((tmp_path / name).is_file() for name in re.findall(r"\((\S+\.png)\)", markdown))
    verdict = re.search(r"\*\*(.+)\*\*", markdown)
    assert verdict is not None
    assert verdict[1].replace("&", "&amp;").replace("<", "&lt;") in html


def test_without_matplotlib_the_tables_still_come(
    sweep: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # neither found nor imported
    report.main([str(sweep), "--out", str(tmp_path)])
    assert "matplotlib is not installed" in capsys.readouterr().out
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"report.csv", "report.md", "report.html"}


def test_the_report_lies_beside_the_runs_and_names_them_from_there(
    write: Write, tmp_path: Path
) -> None:
    write("a", 1.0)
    report.main([str(tmp_path / "runs")])
    with (tmp_path / "runs" / "report.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["folder"] == "a"
    assert row["eval/pairs/found"] == "3"


def test_a_baseline_is_what_the_others_are_held_against(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        for rate, loss in ((0.15, 1.0), (0.3, 0.8), (0.5, 1.5)):
            write(
                f"{rate} {seed}", loss + 0.01 * seed * rate, f"seed={seed}", f"masking.rate={rate}"
            )
    report.main([str(tmp_path), "--baseline", "masking.rate=0.15"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "masking.rate=0.3 is better than the baseline, masking.rate=0.15: its" in printed
    assert "Worse: masking.rate=0.5." in printed
    with refusal("--baseline", Code.NOT_FOUND, "masking.rate=0.2", "masking.rate=0.15"):
        report.main([str(tmp_path), "--baseline", "masking.rate=0.2"])


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_run_is_named(write: Write, tmp_path: Path, size: int) -> None:
    folder = write("a", 1.0)
    (folder / DOCUMENTS).write_bytes((folder / DOCUMENTS).read_bytes()[:size])
    with refusal(folder / DOCUMENTS, Code.CORRUPT):
        analysis.table([tmp_path])
    (folder / "summary.json").write_text("{")
    with refusal(folder, Code.CORRUPT):
        analysis.table([tmp_path])


# The losses of documents


def test_a_run_keeps_the_losses_of_its_test_documents(sweep: Path) -> None:
    summary = json.loads((sweep / "0" / "summary.json").read_text())
    documents = DocumentLosses.read(sweep / "0")
    assert documents.masked_tokens.sum() == summary["eval_masked_tokens"]
    mean = documents.loss_sums.sum() / documents.masked_tokens.sum()
    assert mean == pytest.approx(summary["eval_loss"], rel=1e-12)
    assert not documents.loss_sums[documents.masked_tokens == 0].any()


Evaluated = Callable[..., DocumentLosses]


@pytest.fixture
def evaluated(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    monkeypatch.chdir(tmp_path)

    def score(out: str, *overrides: str) -> DocumentLosses:
        config = mlmlab.compose_evaluation(f"checkpoint={sweep}/0", f"out={out}", *overrides)
        mlmlab.evaluate_checkpoint(config, quiet=True)
        return DocumentLosses.read(tmp_path / out)

    return score


def test_an_evaluation_of_its_checkpoint_asks_the_same_and_finds_the_same_bits(
    sweep: Path, evaluated: Evaluated
) -> None:
    own, again = DocumentLosses.read(sweep / "0"), evaluated("again")
    assert again.test == own.test
    assert np.array_equal(again.loss_sums, own.loss_sums)
    for number, keys in enumerate(("eval.seed=1", "eval.mask_draws=2", "eval.masking.rate=0.2")):
        assert evaluated(f"other{number}", keys).test != own.test
    assert evaluated("longer", "data.block_size=16").test != own.test
    with refusal("out", Code.NOT_WRITABLE, "again"):
        evaluated("again")


@pytest.mark.parametrize("out", ["scores", None])
def test_evaluations_of_runs_are_kept_apart_and_reported_by_the_runs_settings(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: this takes it back
    checkpoints = ",".join(f"{sweep}/{number}" for number in range(4))
    keep = ["hydra.sweep.dir=scores"] if out is None else [f"out={out}"]
    arguments = ["evaluate", "-m", f"checkpoint={checkpoints}", "eval.seed=7", *keep]
    monkeypatch.setattr(sys, "argv", arguments)
    evaluate.main()
    table = analysis.table(["scores"]).splitlines()
    assert table[0].split() == ["masking.rate", "perplexity", "seeds"]
    assert [line.split()[0] for line in table[1:3]] == ["0.15", "0.4"]
    assert [line.split()[4] for line in table[1:3]] == ["2", "2"]
