"""Measures the entries of experiments/README.md again, and writes them down.

    python experiments/run.py [--only masking_rate] [--seeds 0,1,2]

An entry is a comparison of arms, each of them run once for each seed, in a folder under runs/. What
is finished there is not run again. The entry's folder gets result.json (every figure, the commit,
the machine, the commands) and, where matplotlib is installed, a plot.

Without a network, --minilm DIR and --eli5 FILE stand in for what two of the entries download.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from with_trainer import train_with_trainer

import mlmlab
from mlmlab.analysis.significance import Sample, compare
from mlmlab.analysis.table import perplexity_text
from mlmlab.analysis.verdict import verdict
from mlmlab.data.batch import Masker
from mlmlab.data.loader import EvalLoader
from mlmlab.runs.setup import set_up
from mlmlab.tracking.summary import Summary

HERE = Path(__file__).parent
Overrides = tuple[str, ...]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Entry:
    """A question, and the runs that answer it."""

    question: str
    arms: dict[str, Overrides]
    """The overrides of each arm, beside the seed. START in them is the export of `start`."""
    scored: dict[str, Overrides] = field(default_factory=dict)
    """Evaluations of each arm's export, beside the run's own: overrides of mlmlab.evaluate."""
    start: Overrides | None = None
    """A run, the same for all arms and seeds, whose export the arms start from."""
    seeds: tuple[int, ...] = (0, 1, 2)
    with_trainer: tuple[str, ...] = ()
    """Arms that transformers' Trainer trains."""
    baseline: Callable[[Overrides], float] | None = None
    """A perplexity to hold against the arms', from the overrides of the first of them."""


def unigram(overrides: Overrides) -> float:
    """The perplexity of the training tokens' frequencies (one more of each) on the tokens that the
    evaluations predict."""
    config = mlmlab.compose(*overrides)
    inputs = set_up(config)
    vocabulary = inputs.tokenizer.vocabulary()
    counts = np.bincount(np.asarray(inputs.train.shard.tokens), minlength=vocabulary.size) + 1
    masker = Masker(config.eval.masking, vocabulary, inputs.seeds.eval_masks)
    chunks = EvalLoader(inputs.test, masker).chunks()
    labels = np.concatenate([chunk.batch.masked.labels.numpy() for chunk in chunks])
    return float(np.exp(-np.log(counts[labels] / counts.sum()).mean()))


def entries(minilm: str = MINILM, eli5: Overrides = ()) -> dict[str, Entry]:
    """All of them.

    Args:
        minilm: the checkpoint of all-MiniLM-L6-v2.
        eli5: overrides for where the text of minilm_eli5 is.
    """
    untrained = (
        "checkpoint=null", "checkpoint_head=require", f"tokenizer.path={minilm}",
        "model.family=bert", "model.hidden_size=384", "model.layers=6", "model.heads=12",
        "model.intermediate_size=1536", "model.max_positions=512", "model.dropout=0.1",
        "model.initializer_range=0.02",
    )  # fmt: skip
    one_epoch = ("+experiment=minilm_eli5", *eli5, "train.epochs=1")
    on_answers = ("+experiment=minilm_eli5", *eli5, "eval.max_examples=512")
    on_test = ("eval.split=test", "eval.max_examples=512")
    short = (*on_answers, "train.max_steps=100")
    docs = ("+experiment=python_docs", "train.epochs=8", "train.early_stopping_patience=null")
    again = (
        *on_answers, "checkpoint=START", "checkpoint_head=require", "train.max_steps=100",
        "train.learning_rate=1e-4",
    )  # fmt: skip
    all_masked = ("masking.mask_fraction=1", "masking.random_fraction=0")
    return {
        "first_command": Entry(
            "README's first command: how does perplexity fall to the floor?",
            {"default": ("eval.every_steps=60",)},
        ),
        "masking_rate": Entry(
            "Small world: how close to the floor do 1,620 steps come at three masking rates?",
            {f"{rate:.0%}": (f"masking.rate={rate}",) for rate in (0.15, 0.3, 0.5)},
        ),
        "corruption": Entry(
            "Small world: does 80/10/10 matter, against [MASK] in every predicted token's place?",
            {"80/10/10": (), "all [MASK]": all_masked},
            scored={
                "80/10/10": (),
                "all [MASK]": tuple(f"eval.{override}" for override in all_masked),
            },
        ),
        "minilm_eli5": Entry(
            "ELI5: what is a pretrained encoder of sentences worth to a new masked-LM head?",
            {
                "pretrained": (*short, f"checkpoint={minilm}"),
                "untrained": (*short, *untrained),
            },
            seeds=tuple(range(6)),  # they differ widely
        ),
        "trainer": Entry(
            "ELI5: do 100 steps from one checkpoint come to the same in mlmlab and in Trainer?",
            {"mlmlab": again, "Trainer": again},
            scored={"test": ("data=eli5_category_validation", *eli5, *on_test)},
            start=(*one_epoch, f"checkpoint={minilm}"),
            # The start's own seed, 0, would give an arm the same examples and masks again.
            seeds=tuple(range(1, 9)),
            with_trainer=("Trainer",),
        ),
        "masking_unit": Entry(
            "Python's documentation: tokens, words or spans, evaluated on single tokens?",
            {
                "token": docs,
                "word": (*docs, "masking=whole_word"),
                "span": (*docs, "masking=spanbert"),
            },
        ),
        "python_docs": Entry(
            "Python's documentation: how far below a unigram model is a tiny model in 50 epochs?",
            {"python_docs": ("+experiment=python_docs",)},
            baseline=unigram,
        ),
    }


def measure(entry: Entry, online: Entry, seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """The runs of an entry that are not finished in `folder`, one after the other, and all their
    figures.

    Args:
        online: the same, without this machine's paths.
    """
    start = ""
    if entry.start is not None:
        trained(entry.start, folder / "start")
        start = str(folder / "start" / "export")
    arms: dict[str, dict[str, list[Any]]] = {arm: {} for arm in entry.arms}
    for seed in seeds:
        for arm, given in entry.arms.items():
            overrides = (*(text.replace("START", start) for text in given), f"seed={seed}")
            run_dir = folder / f"{''.join(filter(str.isalnum, arm))}-{seed}"
            if arm in entry.with_trainer:
                train_with_trainer(mlmlab.compose(*overrides), run_dir / "export")
                figures = {}
            else:
                summary = trained(overrides, run_dir)
                figures = figures_of(summary, run_dir)
            for name, evaluation in entry.scored.items():
                figures[f"scored: {name}"] = scored(run_dir, *evaluation)
            for name, value in figures.items():
                arms[arm].setdefault(name, []).append(value)
            shown = figures.get("perplexity") or next(iter(figures.values()))
            print(f"{arm}  seed {seed}  perplexity {shown}", flush=True)
    result = {
        "question": entry.question,
        "date": datetime.now(UTC).date().isoformat(),
        "seeds": seeds,
        "commit": summary.git_commit,
        "processor": summary.processor,
        "gpu": summary.gpu,
        "threads": summary.threads,
        "precision": summary.precision,
        "versions": summary.versions,
        "minutes": round(sum(sum(x.get("seconds", [])) for x in arms.values()) / 60, 1),
        "arms": {
            arm: {"command": " ".join(["python -m mlmlab.train", *online.arms[arm], "seed=SEED"])}
            | figures
            for arm, figures in arms.items()
        },
    }
    if entry.baseline is not None:
        result["unigram_perplexity"] = entry.baseline(next(iter(entry.arms.values())))
    return result


def trained(overrides: Overrides, run_dir: Path) -> Summary:
    """The run, begun, continued or read."""
    config = mlmlab.compose(*overrides, f"run_dir={run_dir}", "resume=auto")
    return mlmlab.run(config, quiet=True).summary


def figures_of(summary: Summary, run_dir: Path) -> dict[str, Any]:
    """What result.json has of a run."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return {
        "perplexity": summary.eval_perplexity,
        "standard_error": summary.eval_perplexity * summary.eval_loss_standard_error,
        "initial_perplexity": summary.initial_eval_perplexity,
        "floor": summary.floor_perplexity,
        "steps": summary.steps,
        "seconds": round(summary.seconds),
        "curve": [[e["step"], e["eval/perplexity"]] for e in events if "eval/perplexity" in e],
        "completions": [e["fill_mask"] for e in events if "fill_mask" in e][-1:],
    }


def scored(run_dir: Path, *overrides: str) -> dict[str, float | None]:
    """An evaluation: perplexity and floor, of all predicted tokens and of those shown as [MASK]."""
    is_run = (run_dir / "config.yaml").is_file()
    checkpoint = run_dir if is_run else run_dir / "export"
    config = mlmlab.compose_evaluation(f"checkpoint={checkpoint}", *overrides)
    report = mlmlab.evaluate_checkpoint(config, quiet=True).to_mapping()
    return {
        "perplexity": report["perplexity"],
        "standard_error": report["perplexity_standard_error"],
        "floor": report["floor_perplexity"],
        "at masks": report["masked"]["perplexity"],
        "floor at masks": report["masked"]["floor_perplexity"],
    }


def tables(result: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """The perplexities to compare, a list over the seeds for each arm, by what was evaluated."""
    arms = result["arms"]
    found = {}
    for name in dict.fromkeys(name for figures in arms.values() for name in figures):
        values = {arm: figures.get(name) for arm, figures in arms.items()}
        if name.startswith("scored: "):
            evaluation = name.removeprefix("scored: ")
            for key, label in (("perplexity", evaluation), ("at masks", f"{evaluation} at [MASK]")):
                table = {arm: [x[key] for x in scores] for arm, scores in values.items()}
                if table not in found.values():  # all predicted tokens may be shown as [MASK]
                    found[label] = table
    return found or {"test": {arm: figures["perplexity"] for arm, figures in arms.items()}}


def compared(values: dict[str, list[float]], seeds: Sequence[int]) -> str:
    """Means over the seeds with their standard errors, and what `mlmlab.report` says of the arms
    against the first of them."""
    samples = {
        arm: Sample(dict(zip(seeds, map(math.log, perplexities), strict=True)))
        for arm, perplexities in values.items()
    }
    means = "; ".join(f"{arm} {perplexity_text(sample)}" for arm, sample in samples.items())
    if len(samples) == 1:
        return f"{means}."
    return f"{means}. {verdict(compare(samples, next(iter(samples))), list(samples))}"


def plot(path: Path, result: dict[str, Any]) -> None:
    """Every run a point, an arm a row, a panel for each evaluation."""
    if util.find_spec("matplotlib") is None:
        print(f"matplotlib is not installed: no {path.name} (pip install matplotlib)")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    compared = tables(result)
    height = 1.2 + 0.6 * len(result["arms"])
    figure, panels = pyplot.subplots(
        len(compared), figsize=(7, height * len(compared)), layout="constrained", squeeze=False
    )
    for axes, (label, values) in zip(panels[:, 0], compared.items(), strict=True):
        for row, perplexities in enumerate(values.values()):
            axes.plot(perplexities, [row] * len(perplexities), "o", alpha=0.7)
            axes.plot(statistics.mean(perplexities), row, "k|", markersize=18)
        floor = floor_of(result, label)
        if floor is not None:
            axes.axvline(floor, color="gray", linestyle="--")
            axes.annotate(" exact floor", (floor, len(values) - 0.6), color="gray")
        axes.set_yticks(range(len(values)), list(values))
        axes.set_ylim(-0.6, len(values) - 0.3)
        axes.set_xlabel(f"perplexity ({label}), {len(result['seeds'])} seeds (bar: mean)")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def plot_curves(path: Path, result: dict[str, Any]) -> None:
    """Test perplexity against steps, a line for each seed, and the exact floor."""
    if util.find_spec("matplotlib") is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    (figures,) = result["arms"].values()
    for curve in figures["curve"]:
        axes.plot(*zip(*curve, strict=True), color="C0", alpha=0.7)
    floor = floor_of(result, "test")
    if floor is not None:
        axes.axhline(floor, color="gray", linestyle="--")
        axes.annotate(f"exact floor {floor:.3f}", (0, floor * 0.88), color="gray", va="top")
        axes.set_ylim(bottom=floor * 0.6)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("steps")
    axes.set_ylabel("test perplexity")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def floor_of(result: dict[str, Any], label: str) -> float | None:
    """The exact floor of an evaluation, where it is known."""
    figures = next(iter(result["arms"].values()))
    if label == "test":
        return figures["floor"][0]
    name, _, place = label.partition(" at ")
    return figures[f"scored: {name}"][0]["floor at masks" if place else "floor"]


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="Measures entries of experiments/README.md.")
    parser.add_argument("--only", action="append", metavar="NAME", help="default: all")
    parser.add_argument("--seeds", help="default: an entry's own three", metavar="N,N,...")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--minilm", default=MINILM)
    parser.add_argument("--eli5", metavar="FILE", help="ELI5-Category's second validation split")
    arguments = parser.parse_args()
    given = arguments.seeds.split(",") if arguments.seeds else []
    if len(given) == 1:
        parser.error("--seeds: at least two, for without a spread nothing is decided")
    eli5 = ("data.source=file", f"data.path={arguments.eli5}") if arguments.eli5 else ()
    known = entries(arguments.minilm, eli5)
    for name in arguments.only or known:
        folder = arguments.runs.resolve() / name
        seeds = [int(seed) for seed in given or known[name].seeds]
        result = measure(known[name], entries()[name], seeds, folder)
        result["verdicts"] = {label: compared(x, seeds) for label, x in tables(result).items()}
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        plot(folder / "result.png", result)
        if len(result["arms"]) == 1:  # those of several arms cover each other
            plot_curves(folder / "curves.png", result)
        for label, text in result["verdicts"].items():
            print(f"{label}: {text}")
        print(f"{result['minutes']} minutes; written: {folder}")


if __name__ == "__main__":
    main()
