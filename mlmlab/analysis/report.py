"""The report on some runs: report.csv, report.md, report.html and the plots."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlmlab.analysis.page import Block, Heading, Plot, Table, Text, as_html, as_markdown
from mlmlab.analysis.plots import plots
from mlmlab.analysis.runs import find_runs
from mlmlab.analysis.settings import Comparison, comparisons, shown, with_baseline
from mlmlab.analysis.significance import Outcome, compare
from mlmlab.analysis.table import full_table, notes, perplexity_text, titles_of
from mlmlab.analysis.verdict import interval_text, p_text, percent, percent_error, verdict
from mlmlab.errors import Code, UserError
from mlmlab.tracking.curve import can_plot

_FIGURES = (
    "eval_perplexity",
    "eval_loss",
    "eval_loss_standard_error",
    "eval_masked_tokens",
    "best_eval_perplexity",
    "floor_perplexity",
    "steps",
    "tokens",
    "seconds",
    "tokens_per_second",
    "device",
    "precision",
    "git_commit",
)
_OF_PLOTS = (
    "A thin line or a small dot is a run; a thick line or a large dot is the mean over seeds, "
    "with its standard error. Curves may begin above the plot."
)
_HOW_TO_READ = (
    "Perplexity is the exponential of the mean loss over seeds; ± is one standard error, from the "
    "spread between seeds.",
    "Settings are compared seed by seed, by the differences of their losses: a t test over these. "
    "p is the chance of a difference at least as large between settings that do not differ, after "
    "Holm's correction for the number of comparisons: all pairs, or with a baseline those with it. "
    "Settings are called different if p is below 0.05. Each 95% interval is for its comparison "
    "alone, and for these test documents.",
    "The standard error of a difference has two sources. Seeds: what other seeds would change, on "
    "these test documents; the t test goes by it. Documents: what other test documents of the same "
    "kind would change, for the weights that there are; all runs were tested on the same "
    "documents, so it comes from the differences document by document. Together: both; what seeds "
    "and documents only explain together is part of each, and counts once.",
)


def write_report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    baseline: Mapping[str, Any] | None = None,
) -> str:
    """Writes the report.

    Args:
        folders: as `find_runs` takes them.
        out: where to; None: into the first of them.
        baseline: the values of the setting that the others are held against, by dotted key; None:
            the best one.

    Returns:
        The tables and verdicts for the terminal, and what was written.

    Raises:
        UserError: from `find_runs` and `with_baseline`, or the folder cannot be written.
    """
    folder = Path(folders[0] if out is None else out)
    found = find_runs(folders)
    every = comparisons(found.runs)
    if baseline:
        every = with_baseline(every, baseline)
    titles = titles_of(every)
    settings = sum(len(comparison.settings) for comparison in every)
    title = f"{len(found.runs)} runs, {settings} settings"
    blocks: list[Block] = [Heading(title, 1)]
    if len(every) > 1:
        text = f"{len(every)} tables: figures of different test texts or masks do not compare."
        blocks.append(Text(text))
    drawn: list[Plot] = []
    for number, (comparison, heading) in enumerate(zip(every, titles, strict=True), 1):
        prefix = f"test_{number}_" if len(every) > 1 else ""
        pictures = plots(comparison) if can_plot() else {}
        of_this = [Plot(prefix + name, png) for name, png in pictures.items()]
        drawn += of_this
        blocks += [Heading(heading)] if heading else []
        blocks += _blocks(comparison, of_this, folder, 3 if heading else 2)
    if found.unfinished:
        blocks.append(Text(f"Not finished, and left out: {', '.join(map(str, found.unfinished))}"))
    blocks += [Heading("How to read this"), *map(Text, _HOW_TO_READ)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for plot in drawn:
            (folder / f"{plot.name}.png").write_bytes(plot.png)
        (folder / "report.md").write_text(as_markdown(blocks), encoding="utf-8")
        (folder / "report.html").write_text(as_html(title, blocks), encoding="utf-8")
        _write_csv(folder, every)
    except OSError as error:
        raise UserError.of(
            "--out",
            code=Code.NOT_WRITABLE,
            found=f"{folder}: {error.strerror}",
            expected="a folder that can be written",
            remedy="--out ANOTHER_FOLDER",
        ) from error
    lines = [full_table(found, every), "", f"written    {folder / 'report.html'}"]
    count = f"{len(drawn)} plot{'s' if len(drawn) != 1 else ''}"
    lines.append(f"           with report.md, report.csv and {count}")
    if not can_plot():
        lines.append("no plots: matplotlib is not installed (pip install 'mlmlab[report]')")
    return "\n".join(lines)


def _blocks(comparison: Comparison, drawn: Sequence[Plot], folder: Path, level: int) -> list[Block]:
    """The part of the page that is about one test.

    Args:
        folder: the page's.
        level: of its headings.
    """
    samples = comparison.samples
    outcome = compare(samples, comparison.baseline)
    winner = outcome.best if outcome and outcome.others else ""
    rows = [
        [
            *(shown(key, setting.values[key]) for key in comparison.keys),
            perplexity_text(samples[setting.label]),
            str(len(setting.runs)),
            "best" if setting.label == winner else "",
        ]
        for setting in comparison.settings
    ]
    blocks: list[Block] = [
        Text(verdict(outcome, list(samples)), is_verdict=True),
        Table([*comparison.keys, "test perplexity", "seeds", ""], rows, len(comparison.keys)),
    ]
    blocks += [Text(note) for note in notes(comparison)]
    if outcome and outcome.others:
        blocks += _differences(comparison, outcome, level)
    if drawn:
        blocks += [Heading("Plots", level), drawn, Text(_OF_PLOTS)]
    return [*blocks, Heading("Runs", level), _runs(comparison, folder)]


def _differences(comparison: Comparison, outcome: Outcome, level: int) -> list[Block]:
    which = "the baseline" if outcome.is_against_baseline else "the best setting"
    values = {setting.label: setting.values for setting in comparison.settings}
    sources = ["± from seeds", "± from documents", "± together"]
    head = [*comparison.keys, "perplexity", "95% interval", "p", "seeds", *sources]
    rows = [
        [
            *(shown(key, values[other.name][key]) for key in comparison.keys),
            percent(other.difference),
            interval_text(other.difference),
            p_text(other.p),
            str(other.difference.seeds),
            percent_error(other.difference, other.difference.seed_error),
            percent_error(other.difference, other.difference.document_error),
            percent_error(other.difference, other.difference.total_error),
        ]
        for other in outcome.others
    ]
    heading = Heading(f"Differences from {which}, {outcome.reference}", level)
    return [heading, Table(head, rows, len(comparison.keys))]


def _runs(comparison: Comparison, folder: Path) -> Table:
    rows = [
        [
            _beside(folder, run.folder),
            *(shown(key, setting.values[key]) for key in comparison.keys),
            str(seed),
            "-" if math.isnan(run.loss) else f"{math.exp(run.loss):.4g}",
        ]
        for setting in comparison.settings
        for seed, run in setting.runs.items()
    ]
    head = ["folder", *comparison.keys, "seed", "test perplexity"]
    return Table(head, rows, 1 + len(comparison.keys), is_long=True)


def _beside(folder: Path, run_dir: Path) -> str:
    """A run's folder as seen from the page's, if it is inside."""
    inside = run_dir.resolve().is_relative_to(folder.resolve())
    return str(run_dir.resolve().relative_to(folder.resolve()) if inside else run_dir)


def _write_csv(folder: Path, every: Sequence[Comparison]) -> None:
    """A row for each run. `test` numbers the tests: figures compare within one."""
    keys = dict.fromkeys(key for one in every for key in (*one.keys, *one.following))
    runs = [
        (number, run)
        for number, one in enumerate(every, 1)
        for run in (*(run for s in one.settings for run in s.runs.values()), *one.repeated)
    ]
    own = dict.fromkeys(name for _, run in runs for name in run.figures if "/" in name)
    with (folder / "report.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["folder", "test", "seed", *keys, *_FIGURES, *own])
        for number, run in runs:
            settings = (shown(key, run.config.get(key)) for key in keys)
            figures = (run.figures.get(name) for name in (*_FIGURES, *own))
            writer.writerow([_beside(folder, run.folder), number, run.seed, *settings, *figures])
