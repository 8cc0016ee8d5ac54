"""Masks a second: mlmlab's kernel, transformers' collator and a bare copy, in the same run.

    B rows   T positions   M predicted tokens

Every contender turns rows of ids into a batch ready for a masked language model. The rounds are
interleaved: each round runs all contenders of a batch size in a new random order, so that a slow
minute of the machine hits all of them. What each of them is given: `NOTES`.
"""

import argparse
import gc
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import hardware, print_machine, results_folder, write_csv
from masking_contenders import (
    CHECKED_SIZE,
    INNER,
    LISTS,
    TOKEN,
    VOCABULARY_SIZE,
    WHOLE_WORD,
    WIDEN,
    WORD,
    Contender,
    Material,
    check,
    copy_contenders,
    mlmlab_contenders,
    transformers_contenders,
)
from numpy.typing import NDArray

from mlmlab.data.tokenizer import word_tokenizer

SIZES = "8x128,32x128,64x512,256x128,512x512"
SAMPLE_SECONDS = 0.002
"""A sample repeats a quick call until it lasts about so long."""
CONTENDER_SECONDS = 0.7
"""What a contender may take at one batch size; slow ones get fewer samples, but three."""
NOTES = """\
mlmlab       memory-mapped uint16 rows, taken by index, to an int64 MaskedBatch;
             word, span: a byte a token says where words begin, taken likewise.
             Several cores: a slice of the rows for each, joined to one batch; small
             batches do not repay waking the threads.
lists        the collator called with [{"input_ids": [...]}, ...]
mask given   the same, with "special_tokens_mask" in each example
tensors      the same as lists, but with a tensor for each example
stacked      the collator called with bare tensors: no padding step
inner        torch_mask_tokens alone: int64 tensor and special-tokens mask given;
             it writes in place, so that the clone of its input is timed too
whole word   whole_word_mask=True, with "offset_mapping" and
             "special_tokens_mask"; it only masks, and draws no random tokens
copy         numpy.copyto: the ids to preallocated int64; and memcpy of as many
             bytes as a MaskedBatch has
"""
FIRST_CALL = """
import time
import numpy as np
begin = time.perf_counter()
from mlmlab.masking import MaskingConfig, VocabularyInfo, mask_batch
config, vocabulary = MaskingConfig(), VocabularyInfo(50265, 4, (0, 1, 2, 3))
ids, examples = np.full((64, 512), 7, np.uint16), np.arange(64)
imported = time.perf_counter()
mask_batch(ids, example_ids=examples, epoch=0, seed=0, config=config, vocabulary=vocabulary)
print(imported - begin, time.perf_counter() - imported)
"""


@dataclass(frozen=True)
class Measurement:
    """The samples of a contender at one batch size."""

    contender: str
    rows: int
    length: int
    calls: int
    rates: NDArray[np.float64]
    """Million tokens a second, one for each sample."""

    @property
    def median(self) -> float:
        return float(np.median(self.rates))

    @property
    def spread(self) -> tuple[float, float]:
        """10th and 90th percentile."""
        low, high = np.percentile(self.rates, (10, 90))
        return float(low), float(high)


def seconds(contender: Contender, first: int, calls: int) -> float:
    """Of `calls` calls in a row."""
    begin = time.perf_counter()
    for number in range(first, first + calls):
        contender.run(number)
    return time.perf_counter() - begin


def measure(
    contenders: Sequence[Contender], rows: int, length: int, repeats: int
) -> list[Measurement]:
    """Times the contenders of one batch size in interleaved rounds."""
    calls, quotas, samples = [], [], [[] for _ in contenders]
    for contender in contenders:
        seconds(contender, 0, 1)
        once = seconds(contender, 1, 1)
        calls.append(max(1, round(SAMPLE_SECONDS / once)))
        affordable = int(CONTENDER_SECONDS / (once * calls[-1]))
        quotas.append(min(repeats, max(3, affordable)))
    shuffle = random.Random(0)
    places = list(range(len(contenders)))
    gc.collect()
    gc.disable()  # as timeit does: the lists that wait for the collator are no one's fault
    for turn in range(repeats):
        shuffle.shuffle(places)
        for place in places:
            if (turn + 1) * quotas[place] // repeats > turn * quotas[place] // repeats:
                taken = seconds(contenders[place], turn, calls[place])
                samples[place].append(rows * length * calls[place] / taken / 1e6)
    gc.enable()
    return [
        Measurement(contender.name, rows, length, number, np.array(rates))
        for contender, number, rates in zip(contenders, calls, samples, strict=True)
    ]


def first_call_text() -> str:
    """What a fresh process pays, once another has left the compiled kernel on the disk."""
    command = [sys.executable, "-c", FIRST_CALL]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(4)]
    imports, calls = zip(*(map(float, run.stdout.split()) for run in runs[1:]), strict=True)
    return (
        "first call in a fresh process, compiled kernel cached, 64x512: "
        f"{statistics.median(calls) * 1e3:.0f} ms\n(after {statistics.median(imports):.2f} s of "
        f"imports; medians of {len(calls)} processes)"
    )


def print_table(measurements: Sequence[Measurement]) -> None:
    """One batch size: rates, and how many times those of the collator they are."""
    medians = {m.contender: m.median for m in measurements}
    size = f"{measurements[0].rows}x{measurements[0].length}"
    print(f"\n{size:<25}{'Mtok/s':>9}{'10th-90th pct':>20}{'repeats':>9}{'/inner':>8}{'/lists':>8}")
    for m in measurements:
        low, high = m.spread
        line = f"{m.contender:<25}{m.median:9.4g}{f'{low:.4g} - {high:.4g}':>20}{len(m.rates):9}"
        for ratio in (m.median / medians[INNER], m.median / medians[LISTS]):
            line += f"{ratio:8,.0f}" if ratio >= 100 else f"{ratio:8.3g}"
        print(line)
    print(
        f"mlmlab token: {medians[TOKEN] / medians[WIDEN]:.0%} of the widening copy; "
        f"mlmlab word: {medians[WORD] / medians[WHOLE_WORD]:,.0f} times whole word"
    )


def table_rows(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """A row for each contender and size."""
    medians = {(m.contender, m.rows, m.length): m.median for m in measurements}
    rows = []
    for m in measurements:
        low, high = m.spread
        rows.append(
            {
                "contender": m.contender,
                "rows": m.rows,
                "tokens_per_row": m.length,
                "million_tokens_per_second": f"{m.median:.6g}",
                "10th_percentile": f"{low:.6g}",
                "90th_percentile": f"{high:.6g}",
                "ratio_to_inner": f"{m.median / medians[INNER, m.rows, m.length]:.4g}",
                "ratio_to_lists": f"{m.median / medians[LISTS, m.rows, m.length]:.4g}",
                "repeats": len(m.rates),
                "calls_per_repeat": m.calls,
            }
        )
    return rows


def write_plot(path: Path, measurements: Sequence[Measurement], machine: dict[str, Any]) -> None:
    """A line for each contender, its name at its end."""
    if util.find_spec("matplotlib") is None:
        print(f"matplotlib is not installed: no {path.name} (pip install matplotlib)")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(m.contender for m in measurements))
    sizes = list(dict.fromkeys((m.rows, m.length) for m in measurements))
    families = {"mlmlab": ("Blues", "o-"), "transformers": ("Oranges", "s-")}
    figure, axes = pyplot.subplots(figsize=(10, 6.5), layout="constrained")
    ends = []
    for name in names:
        family = [other for other in names if other.split()[0] == name.split()[0]]
        palette, style = families.get(name.split()[0], ("Greys", "--"))
        shade = 0.95 - 0.5 * family.index(name) / len(family)
        color = pyplot.get_cmap(palette)(shade)
        mine = [m for m in measurements if m.contender == name]
        places = [sizes.index((m.rows, m.length)) for m in mine]
        axes.plot(places, [m.median for m in mine], style, color=color, markersize=4)
        low, high = zip(*(m.spread for m in mine), strict=True)
        axes.fill_between(places, low, high, color=color, alpha=0.12)
        ends.append((mine[-1].median, name, color))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xticks(range(len(sizes)), [f"{rows}x{length}" for rows, length in sizes])
    axes.set_xlim(-0.2, len(sizes) - 0.8)
    axes.set_xlabel("batch: rows x tokens")
    axes.set_ylabel("million tokens per second (median; band: 10th to 90th percentile)")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_ylim()
    gap = (high / low) ** 0.042  # the height of a label
    height = 0.0
    for rate, name, color in sorted(ends, key=lambda end: end[0]):
        height = max(rate, height * gap)
        axes.annotate(
            name, (len(sizes) - 1, rate), (len(sizes) - 0.8, height), color=color, va="center",
            annotation_clip=False, arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.4},
        )  # fmt: skip
    axes.set_title(
        f"Masked batches on {machine['cpu']}, {machine['cores']} cores; torch threads: "
        f"{machine['torch_threads']}",
        loc="left",
    )
    figure.savefig(path, dpi=130)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Times masking: mlmlab, transformers' collator, and a bare copy.",
        epilog="examples:\n"
        "  python benchmarks/masking.py\n"
        "  python benchmarks/masking.py --repeats 5 --sizes 8x128,64x512\n"
        "  python benchmarks/masking.py --threads 8 --out results/eight_threads\n",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=80),
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: benchmarks/results/DATE-CPU"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=30,
        help="samples of each quick contender; slow ones get fewer, at least three (default: 30)",
    )
    parser.add_argument("--sizes", default=SIZES, help=f"ROWSxTOKENS,... (default: {SIZES})")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of torch (default: 1); mlmlab's kernel has one, and a separate line with all cores",
    )
    arguments = parser.parse_args()
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*(,[1-9]\d*x[1-9]\d*)*", arguments.sizes):
        parser.error(f"--sizes {arguments.sizes}: ROWSxTOKENS,... for instance 8x128,64x512")
    if arguments.repeats < 3 or arguments.threads < 1:
        parser.error("--repeats: at least 3; --threads: at least 1")
    arguments.sizes = [tuple(map(int, size.split("x"))) for size in arguments.sizes.split(",")]
    return arguments


def main() -> None:
    """Checks, measures, prints, writes."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    machine = hardware() | {"torch_threads": torch.get_num_threads()}
    out = results_folder(arguments.out, machine)
    print_machine(machine)
    tokenizer = word_tokenizer([f"word{number}" for number in range(VOCABULARY_SIZE - 5)])
    cores = machine["cores"]
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(cores) as pool:

        def prepared(rows: int, length: int) -> tuple[Material, list[Contender]]:
            material = Material(tokenizer, rows, length, Path(folder))
            ours = mlmlab_contenders(material, pool, cores)
            return material, ours + transformers_contenders(material)

        material, contenders = prepared(*CHECKED_SIZE)
        check(contenders, material)
        print("checked: all select alike, no special token, and labels are the original ids")
        for rows, length in arguments.sizes:
            material, contenders = prepared(rows, length)
            contenders += copy_contenders(material)
            of_size = measure(contenders, rows, length, arguments.repeats)
            print_table(of_size)
            measurements += of_size
    print(f"\n{first_call_text()}\n\n{NOTES}")
    write_csv(out / "masking.csv", table_rows(measurements), machine)
    write_plot(out / "masking.png", measurements, machine)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
