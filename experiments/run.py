"""Runs the measured entries of experiments/README.md again, and writes them down.

    python experiments/run.py --only masking_rate [--seeds 0,1,2]

An entry is a comparison of arms, each of them run once for each seed. Its folder gets result.json
(every figure, the commit, the machine, the commands) and, where matplotlib is installed, a plot.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

import mlmlab
from mlmlab.data.batch import Masker
from mlmlab.data.loader import EvalLoader
from mlmlab.runs.setup import set_up

HERE = Path(__file__).parent
DECIDED = 3.0
"""Standard errors of a difference from which on it is called one."""


@dataclass(frozen=True)
class Entry:
    """A question, and the runs that answer it."""

    question: str
    arms: dict[str, tuple[str, ...]]
    """The overrides of each arm, beside the seed."""
    baseline: Callable[[tuple[str, ...]], float] | None = None
    """A perplexity to hold against the arms', from the overrides of the first of them."""


def unigram(overrides: tuple[str, ...]) -> float:
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


def rates(*shares: float) -> dict[str, tuple[str, ...]]:
    """An arm for each masking rate."""
    return {f"{share:.0%}": (f"masking.rate={share}",) for share in shares}


ENTRIES = {
    "masking_rate": Entry(
        "Small world: how close to the floor do 1,620 steps come at three masking rates?",
        rates(0.15, 0.3, 0.5),
    ),
    "python_docs": Entry(
        "Python's documentation: how far below a unigram model is a tiny model after 50 epochs?",
        {"python_docs": ("+experiment=python_docs",)},
        unigram,
    ),
    "masking_unit": Entry(
        "Python's documentation: tokens, words or spans, evaluated on single tokens?",
        {
            "token": ("+experiment=python_docs",),
            "word": ("+experiment=python_docs", "masking=whole_word"),
            "span": ("+experiment=python_docs", "masking=spanbert"),
        },
    ),
}


def measure(entry: Entry, seeds: list[int], work: Path) -> dict[str, Any]:
    """All runs of an entry, one after the other, seed by seed."""
    started = time.perf_counter()
    runs: dict[str, list[Any]] = {arm: [] for arm in entry.arms}
    for seed in seeds:
        for arm, overrides in entry.arms.items():
            run_dir = work / f"{arm.rstrip('%')}-{seed}"
            config = mlmlab.compose(*overrides, f"seed={seed}", f"run_dir={run_dir}")
            summary = mlmlab.run(config, quiet=True).summary
            runs[arm].append(summary)
            print(
                f"{arm}  seed {seed}  perplexity {summary.eval_perplexity:.3f}"
                f"  {summary.steps:,} steps  {summary.seconds:.0f} s",
                flush=True,
            )
    one = runs[next(iter(runs))][0]
    result = {
        "question": entry.question,
        "date": datetime.now(UTC).date().isoformat(),
        "seeds": seeds,
        "commit": one.git_commit,
        "processor": one.processor,
        "gpu": one.gpu,
        "threads": one.threads,
        "precision": one.precision,
        "versions": one.versions,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "arms": {
            arm: {
                "command": " ".join(["python -m mlmlab.train", *entry.arms[arm], "seed=SEED"]),
                "perplexity": [s.eval_perplexity for s in summaries],
                "standard_error": [
                    s.eval_perplexity * s.eval_loss_standard_error for s in summaries
                ],
                "floor": [s.floor_perplexity for s in summaries],
                "steps": [s.steps for s in summaries],
                "seconds": [round(s.seconds) for s in summaries],
                "own_figures": [dict(s.own_figures) for s in summaries],
            }
            for arm, summaries in runs.items()
        },
    }
    if entry.baseline is not None:
        result["unigram_perplexity"] = entry.baseline(next(iter(entry.arms.values())))
    result["verdict"] = verdict(result)
    return result


def verdict(result: dict[str, Any]) -> str:
    """The arms' means over the seeds, and each against the first."""
    losses = {arm: list(map(math.log, x["perplexity"])) for arm, x in result["arms"].items()}
    means = {arm: statistics.mean(x) for arm, x in losses.items()}
    texts = []
    first, *others = losses
    if "unigram_perplexity" in result:
        share = math.exp(means[first]) / result["unigram_perplexity"]
        texts.append(f"{share:.1%} of the unigram model's {result['unigram_perplexity']:.1f}")
    for other in others:
        change = math.exp(means[other] - means[first]) - 1
        spread = math.sqrt(
            sum(statistics.variance(losses[arm]) / len(losses[arm]) for arm in (first, other))
        )
        errors = abs(means[other] - means[first]) / spread
        word = "not decided" if errors < DECIDED else "decided"
        texts.append(
            f"{other} against {first}: {change:+.1%}, {errors:.1f} standard errors: {word}"
        )
    spreads = (
        f"{arm} {math.exp(means[arm]):.3f} ± {math.exp(means[arm]) * statistics.stdev(x):.3f}"
        for arm, x in losses.items()
    )
    return "; ".join([*spreads, *texts])


def plot(path: Path, result: dict[str, Any]) -> None:
    """Every run a point, an arm a row."""
    if util.find_spec("matplotlib") is None:
        print(f"matplotlib is not installed: no {path.name} (pip install matplotlib)")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = result["arms"]
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.6 * len(arms)), layout="constrained")
    for row, figures in enumerate(arms.values()):
        axes.plot(figures["perplexity"], [row] * len(figures["perplexity"]), "o", alpha=0.7)
        axes.plot(statistics.mean(figures["perplexity"]), row, "k|", markersize=18)
    if None not in (floor := arms[next(iter(arms))]["floor"]):
        axes.axvline(floor[0], color="gray", linestyle="--")
        axes.annotate(" exact floor", (floor[0], len(arms) - 0.6), color="gray")
    axes.set_yticks(range(len(arms)), list(arms))
    axes.set_ylim(-0.6, len(arms) - 0.3)
    axes.set_xlabel(f"test perplexity, {len(result['seeds'])} seeds (bar: mean)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="Measures entries of experiments/README.md.")
    parser.add_argument("--only", choices=list(ENTRIES), action="append", help="default: all")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    for name in arguments.only or ENTRIES:
        with tempfile.TemporaryDirectory() as work:
            result = measure(ENTRIES[name], seeds, Path(work))
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        plot(folder / "result.png", result)
        print(f"{result['verdict']}\n{result['minutes']} minutes; written: {folder}")


if __name__ == "__main__":
    main()
