"""Tokens a second in training: mlmlab's step, `Trainer`, and transformers' model in a bare loop.

All three train the same weights on the same rows, in the same process, in interleaved rounds, so
that a slow minute of the machine hits all of them. What each of them is given: `NOTES`.

    python benchmarks/training.py [--sizes 8x128,32x128] [--models distilroberta,bert_base]
    python benchmarks/training.py --lengths-of FILE  # a row a line, as many tokens as it has words

Peak memory above weights, gradients, moments and imports (on CPUs): mlmlab's and the loop's, each
in a separate process, of five steps after a first one.
"""

import argparse
import gc
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import util
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import hardware, print_machine, results_folder, write_csv
from numpy.typing import NDArray
from peak_memory import in_new_process, shown
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import mlmlab
from mlmlab.data.batch import Masker
from mlmlab.data.blocks import Examples, Order
from mlmlab.data.groups import padded_length
from mlmlab.data.loader import TrainLoader
from mlmlab.data.tokenizer import Tokenizer, word_tokenizer
from mlmlab.masking import MaskingConfig
from mlmlab.model import MaskedLanguageModel, ModelConfig
from mlmlab.model.families import FeedForwards
from mlmlab.model.flops import actual_flops, dense_equivalent_flops
from mlmlab.random import Seeds
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute
from mlmlab.runtime.distributed import ALONE
from mlmlab.system import keeping_freed_memory
from mlmlab.training.config import TrainConfig
from mlmlab.training.optimizer import build_optimizers
from mlmlab.training.parallel import Replica
from mlmlab.training.step import train_step

MODELS = {"distilroberta": 50265, "bert_base": 30522, "modernbert_base": 50368}
"""Vocabularies of published models; conf/model/ has their other sizes."""
NOTES = """\
mlmlab    TrainLoader and train_step: rows taken by index, masked, copied to the
          device; forward, backward (on CUDA replayed as a graph), clipping,
          fused AdamW; compiled: the same with runtime.compile=true
Trainer   transformers.Trainer as the Hub's guide sets it up: lists of ids, its
          own collator, batches and optimizer; logging and saving off
loop      transformers' model in a loop of a few lines, with batches that were
          masked beforehand, autocast, clipping and fused AdamW
products  the matrix products of mlmlab's step alone, in its shapes: the rate
          that the machine's library reaches, and so the limit of the step
"""


COLORS = {
    "mlmlab": "#1f6fb4", "mlmlab, compiled": "#8fc1e8", "Trainer": "#e8833a", "loop": "#f6c197",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is trained, and on what."""

    model: str
    rows: int
    length: int
    precision: Precision
    device: torch.device
    lengths: tuple[int, ...] = ()
    """Of rows to draw from; none: no row has padding."""

    def __str__(self) -> str:
        padded = " padded" if self.lengths else ""
        return f"{self.model} {self.rows}x{self.length}{padded} {self.precision.value}"

    @property
    def tokens(self) -> int:
        """Real ones of a step, on average."""
        share = np.mean(self.lengths) / self.length if self.lengths else 1.0
        return round(self.rows * self.length * share)

    @property
    def compute(self) -> Compute:
        return Compute(self.device, self.precision)


class RandomRows:
    """Rows of random tokens in memory, as the loader takes them."""

    def __init__(self, setting: Setting, vocabulary_size: int) -> None:
        draw = np.random.default_rng(0)
        shape = (max(256, 64 * setting.rows), setting.length)
        self.ids: NDArray[np.uint16] = draw.integers(5, vocabulary_size, shape, np.uint16)
        self.block_size = setting.length
        self.lengths: NDArray[np.int64] | None = None
        if setting.lengths:
            self.lengths = draw.choice(np.array(setting.lengths), len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, example_ids: NDArray[np.int64]) -> Examples:
        """The rows, padded as mlmlab's own."""
        if self.lengths is None:
            return Examples(self.ids[example_ids])
        lengths = self.lengths[example_ids]
        width = padded_length(lengths.max(), self.block_size)
        return Examples(self.ids[example_ids, :width], lengths)

    def lists(self) -> list[list[int]]:
        """All rows without padding, as transformers takes them."""
        lengths = [self.block_size] * len(self) if self.lengths is None else self.lengths
        return [row[:length].tolist() for row, length in zip(self.ids, lengths, strict=True)]


@dataclass
class Contender:
    """One way to train; `seconds_of(steps)` trains on and says how long the steps took."""

    name: str
    seconds_of: Callable[[int], float]
    flops: int
    """Of a step, as this contender computes it."""


def synchronize(device: torch.device) -> None:
    """Waits for what has been queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def model_config(name: str, pad_id: int) -> ModelConfig:
    """A published shape, with random weights."""
    settings = mlmlab.compose(f"model={name}").model
    return ModelConfig.from_settings(settings, vocabulary_size=MODELS[name], pad_id=pad_id)


def mlmlab_contender(
    folder: Path, rows: RandomRows, setting: Setting, *, compiled: bool = False
) -> Contender:
    """The step of a run, and its loader."""
    model, tokenizer = mlmlab.load_pretrained(str(folder), quiet=True)
    compute = replace(setting.compute, cuda_graphs=setting.compute.is_cuda, compile=compiled)
    replica = Replica(model, ALONE, compute)
    optimizers = build_optimizers(model, TrainConfig())
    masker = Masker(
        MaskingConfig(), tokenizer.vocabulary(), pin_memory=compute.is_cuda,
        fixed_for_rate=0.15 if compute.fixes_shapes else None,
        position_multiple=compute.position_multiple,
    )  # fmt: skip
    seeds = Seeds.of(0, 0, 0)
    order = Order(len(rows), setting.rows, seeds.order)
    loader = TrainLoader(rows, order, setting.rows, masker, seeds, groups_rows=True)  # type: ignore[arg-type]
    batches = loader.batches(0, 0)
    suppressed = torch.zeros((), device=setting.device)

    def take(steps: int) -> None:
        for batch in islice(batches, steps):
            train_step(
                replica, optimizers, batch, schedule_factor=1.0, max_grad_norm=1.0, seeds=seeds,
                suppressed=suppressed,
            )  # fmt: skip
        synchronize(setting.device)

    def seconds_of(steps: int) -> float:
        with keeping_freed_memory():  # as in a run
            take(1)  # which asks the system for it; the first step of a Trainer is not timed, too
            begin = time.perf_counter()
            take(steps)
            return time.perf_counter() - begin

    flops = round(statistics.mean(step_flops(model.config, loader, n) for n in range(20)))
    name = "mlmlab, compiled" if compiled else "mlmlab"
    return Contender(name, seconds_of, flops)


def step_flops(config: ModelConfig, loader: TrainLoader, number: int) -> int:
    """Of a step, padding that is computed included."""
    (micro,) = loader.batch(number).micro_batches
    groups = micro.groups or (micro.masked.input_ids.shape,)
    tokens = sum(rows * length for rows, length in groups)
    share = micro.masked_count / tokens
    return sum(
        actual_flops(config, examples=rows, length=length, predicted=round(share * rows * length))
        for rows, length in groups
    )


class Clock(TrainerCallback):  # type: ignore[misc]
    """The time between the end of a Trainer's first step and that of its last one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (1, state.max_steps):
            synchronize(self.device)
            self.times.append(time.perf_counter())


def trainer_contender(
    folder: Path, rows: RandomRows, setting: Setting, collator: DataCollatorForLanguageModeling
) -> Contender:
    """`Trainer` with the arguments of the Hub's guide."""
    model = AutoModelForMaskedLM.from_pretrained(folder).to(setting.device)
    examples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows.lists()]

    def seconds_of(steps: int) -> float:
        clock = Clock(setting.device)
        arguments = TrainingArguments(
            output_dir=str(folder / "trainer"), per_device_train_batch_size=setting.rows,
            learning_rate=2e-5, weight_decay=0.01, max_steps=steps + 1, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
            bf16=setting.precision is Precision.BF16, fp16=setting.precision is Precision.FP16,
            use_cpu=setting.device.type == "cpu",
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=arguments, train_dataset=examples, data_collator=collator,
            callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        first, last = clock.times
        return last - first

    return Contender("Trainer", seconds_of, dense_flops(rows, setting))


def loop_contender(
    folder: Path, rows: RandomRows, setting: Setting, collator: DataCollatorForLanguageModeling
) -> Contender:
    """What one would write by hand around transformers' model."""
    model = AutoModelForMaskedLM.from_pretrained(folder).to(setting.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)
    lists, size = rows.lists(), setting.rows
    batches = [
        collator([{"input_ids": row} for row in lists[first : first + size]])
        for first in range(0, 20 * size, size)
    ]
    if setting.device.type == "cuda":
        batches = [{name: t.pin_memory() for name, t in batch.items()} for batch in batches]

    def seconds_of(steps: int) -> float:
        synchronize(setting.device)
        begin = time.perf_counter()
        for number in range(steps):
            batch = batches[number % len(batches)]
            on_device = {n: t.to(setting.device, non_blocking=True) for n, t in batch.items()}
            optimizer.zero_grad()
            with setting.compute.autocast():
                loss = model(**on_device).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        synchronize(setting.device)
        return time.perf_counter() - begin

    return Contender("loop", seconds_of, dense_flops(rows, setting))


def dense_flops(rows: RandomRows, setting: Setting) -> int:
    """Of a step that computes logits for every position, padding included."""
    config, longest = model_config(setting.model, 0), setting.length
    if rows.lengths is not None:
        longest = round(rows.lengths[: 20 * setting.rows].reshape(20, -1).max(1).mean())
    return dense_equivalent_flops(config, examples=setting.rows, length=longest)


def products_contender(setting: Setting) -> Contender:
    """Forward products of a step, and the two of backward for each."""
    config = model_config(setting.model, 0)
    wide, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocabulary_size
    every, some = setting.tokens, round(0.15 * setting.tokens)
    up = inner * (2 if config.architecture.feed_forward is FeedForwards.GEGLU else 1)
    layer = [(every, wide, 3 * wide), (every, wide, wide), (every, wide, up)]
    layer += [(every, inner, wide)]
    last = [(every, wide, 2 * wide), (some, wide, wide), (some, wide, wide), (some, wide, up)]
    last += [(some, inner, wide), (some, wide, wide), (some, wide, vocabulary)]
    shapes = layer * (config.layers - 1) + last  # rows, from, to
    kind = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}.get(
        setting.precision, torch.float16
    )

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=setting.device).to(kind)

    cases = {s: (random(s[0], s[1]), random(s[2], s[1]), random(s[0], s[2])) for s in set(shapes)}

    def compute(steps: int) -> None:
        for shape in shapes * steps:
            inputs, weight, gradient = cases[shape]
            inputs @ weight.T, gradient @ weight, gradient.T @ inputs
        synchronize(setting.device)

    def seconds_of(steps: int) -> float:
        with keeping_freed_memory():
            compute(1)
            begin = time.perf_counter()
            compute(steps)
            return time.perf_counter() - begin

    flops = 3 * sum(2 * rows * width * out for rows, width, out in shapes)
    return Contender("products", seconds_of, flops)


def write_checkpoint(folder: Path, setting: Setting, tokenizer: Tokenizer) -> None:
    """Random weights."""
    model = MaskedLanguageModel(model_config(setting.model, tokenizer.pad_id))
    model.initialize(0)
    mlmlab.save_pretrained(model, tokenizer, folder)


def contenders(folder: Path, setting: Setting, compiled: bool) -> Iterator[Contender]:
    """All of one setting."""
    rows = RandomRows(setting, MODELS[setting.model])
    collator = DataCollatorForLanguageModeling(PreTrainedTokenizerFast.from_pretrained(folder))
    yield mlmlab_contender(folder, rows, setting)
    if compiled:
        yield mlmlab_contender(folder, rows, setting, compiled=True)
    yield trainer_contender(folder, rows, setting, collator)
    yield loop_contender(folder, rows, setting, collator)
    yield products_contender(setting)


def steps_after_the_first(folder: Path, setting: Setting, name: str) -> Callable[[], float]:
    """Five steps, with all that lasts longer than a step in memory."""
    them = contenders(folder, setting, compiled=False)
    contender = next(one for one in them if one.name == name)
    contender.seconds_of(1)
    return partial(contender.seconds_of, 5)


@dataclass(frozen=True)
class Measurement:
    """A contender's rounds at one setting."""

    setting: Setting
    name: str
    flops: int
    """Of a step, as the contender computes it."""
    step_seconds: list[float]
    """The mean step of each round."""
    memory: int | None = None
    """Peak bytes of a step above what lasts."""

    @property
    def median(self) -> float:
        return statistics.median(self.step_seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.setting.tokens / self.median

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.median


def measure(
    setting: Setting, tokenizer: Tokenizer, arguments: argparse.Namespace
) -> list[Measurement]:
    """Times the contenders of a setting in interleaved rounds of about `--seconds` each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder, setting, tokenizer)
        memory = {}
        if setting.device.type == "cpu":
            for each in ("mlmlab", "loop"):
                memory[each] = in_new_process(steps_after_the_first, folder, setting, each)[1]
        them = list(contenders(folder, setting, arguments.compile))
        samples: list[list[float]] = [[] for _ in them]
        steps = []
        for contender in them:
            contender.seconds_of(3)
            steps.append(max(3, round(arguments.seconds * 3 / contender.seconds_of(3))))
        for turn in range(arguments.rounds):
            for place in range(len(them)) if turn % 2 else reversed(range(len(them))):
                gc.collect()
                taken = them[place].seconds_of(steps[place])
                samples[place].append(taken / steps[place])
    return [  # without the contenders themselves, whose models would stay in memory
        Measurement(setting, contender.name, contender.flops, row, memory.get(contender.name))
        for contender, row in zip(them, samples, strict=True)
    ]


def print_table(measurements: list[Measurement]) -> None:
    """One setting."""
    limit = measurements[-1]
    ours = measurements[0]
    print(f"\n{measurements[0].setting!s:<32}{'tok/s':>10}{'ms/step':>9}{'spread':>8}", end="")
    print(f"{'TFLOP/s':>9}{'mlmlab is':>11}")
    flops = statistics.median(m.flops for m in measurements[-3:-1])
    for m in measurements:
        spread = (max(m.step_seconds) - min(m.step_seconds)) / m.median
        line = f"  {m.name:<30}{m.tokens_per_second:10,.0f}{m.median * 1e3:9.2f}"
        line += f"{spread:8.0%}{m.flops_per_second / 1e12:9.3g}"
        if m is limit:
            line += f"{ours.flops_per_second / m.flops_per_second:9.0%} of"
        elif "mlmlab" not in m.name:
            line += f"{m.median / ours.median:9.2f} x"
        print(line, flush=True)
    line = f"  transformers computes {flops / ours.flops:.2f} times mlmlab's FLOPs"
    memory = {m.name: m.memory for m in measurements if m.memory is not None}
    if memory:
        mine, theirs = memory["mlmlab"], memory["loop"]
        line += f"; memory {shown(mine)}, the loop {shown(theirs)}: {mine / theirs:.2f}"
    print(line, flush=True)


def table_rows(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """A row for each contender and setting."""
    return [
        {
            "model": m.setting.model,
            "rows": m.setting.rows,
            "tokens_per_row": m.setting.length,
            "real_tokens": m.setting.tokens,
            "precision": m.setting.precision.value,
            "contender": m.name,
            "tokens_per_second": f"{m.tokens_per_second:.6g}",
            "step_ms": f"{m.median * 1e3:.5g}",
            "fastest_ms": f"{min(m.step_seconds) * 1e3:.5g}",
            "slowest_ms": f"{max(m.step_seconds) * 1e3:.5g}",
            "tflops": f"{m.flops_per_second / 1e12:.5g}",
            "peak_bytes_above_states": "" if m.memory is None else m.memory,
            "rounds": len(m.step_seconds),
        }
        for m in measurements
    ]


def write_plot(path: Path, rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> None:
    """A chart for each model, with a bar for each contender at each setting.

    Args:
        rows: as `table_rows`.
    """
    if util.find_spec("matplotlib") is None:
        print(f"matplotlib is not installed: no {path.name} (pip install matplotlib)")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        size, length = int(row["rows"]), int(row["tokens_per_row"])
        padded = " padded" if int(row["real_tokens"]) < size * length else ""
        setting = f"{size}x{length}{padded} {row['precision']}"
        by_contender = models.setdefault(row["model"], {}).setdefault(setting, {})
        by_contender[row["contender"]] = float(row["tokens_per_second"])
    figure, charts = pyplot.subplots(
        len(models), figsize=(9, 1 + 0.9 * sum(map(len, models.values()))), squeeze=False,
        height_ratios=[len(settings) for settings in models.values()], layout="constrained",
    )  # fmt: skip
    bars = [name for name in COLORS if any(row["contender"] == name for row in rows)]
    thickness = 0.8 / len(bars)
    for axes, (model, settings) in zip(charts[:, 0], models.items(), strict=True):
        for place, of_setting in enumerate(settings.values()):
            for number, name in enumerate(bars):
                speed, height = of_setting[name], place + thickness * (number - (len(bars) - 1) / 2)
                label = None if place else name  # once in the legend
                axes.barh(height, speed, 0.9 * thickness, color=COLORS[name], label=label)
                text = f" {speed:,.0f}"
                if "mlmlab" not in name:
                    text += f" (mlmlab is {of_setting['mlmlab'] / speed:.2f} x)"
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0}  # over the limit's line
                axes.text(speed, height, text, va="center", fontsize=8, bbox=box)
            label = None if place else "the matrix products alone"
            limit, ends = [of_setting["products"]] * 2, [place - 0.4, place + 0.4]
            axes.plot(limit, ends, "--", color="0.6", zorder=0, label=label)
        axes.set_yticks(range(len(settings)), settings)
        axes.invert_yaxis()
        axes.set_title(model, loc="left", fontsize=10)
        axes.set_xlim(0, 1.1 * max(max(speeds.values()) for speeds in settings.values()))
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.spines[["top", "right"]].set_visible(False)
    charts[-1, 0].set_xlabel("tokens per second in training (median)")
    figure.legend(*charts[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    figure.text(0.01, 0.005, machine.get("gpu", machine["cpu"]), fontsize=7, color="0.4")
    figure.savefig(path, dpi=120)


def lengths_of(file: Path | None, longest: int) -> tuple[int, ...]:
    """Words of each line that is not empty, and two special tokens."""
    if file is None:
        return ()
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(min(longest, len(line.split()) + 2) for line in lines if line.strip())


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Times training steps against transformers.")
    cuda = torch.cuda.is_available()
    parser.add_argument("--models", default="distilroberta", help=", ".join(MODELS))
    sizes = "8x128,64x128,256x128" if cuda else "8x128"
    parser.add_argument("--sizes", default=sizes, help=f"ROWSxTOKENS,... (default: {sizes})")
    parser.add_argument("--lengths-of", type=Path, metavar="FILE", help="text, a row a line")
    parser.add_argument("--precisions", default="fp32,bf16", help="of fp32, bf16, fp16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0 if cuda else 15.0, help="of a round")
    parser.add_argument("--compile", action="store_true", help="mlmlab with runtime.compile, too")
    parser.add_argument("--tf32", action="store_true", help="as runtime.tf32=true, for all")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*(,[1-9]\d*x[1-9]\d*)*", arguments.sizes):
        parser.error(f"--sizes {arguments.sizes}: ROWSxTOKENS,... for instance 8x128,64x512")
    return arguments


def main() -> None:
    """Measures, prints, writes."""
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high" if arguments.tf32 else "highest")
    machine = hardware() | {"torch_threads": torch.get_num_threads()}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    print_machine(machine)
    out = results_folder(arguments.out, machine)
    measurements: list[Measurement] = []
    for model in arguments.models.split(","):
        size = MODELS[model]
        tokenizer = word_tokenizer([f"word{number}" for number in range(size - 5)])
        for shape in arguments.sizes.split(","):
            rows, length = map(int, shape.split("x"))
            for precision in map(Precision, arguments.precisions.split(",")):
                lengths = lengths_of(arguments.lengths_of, length)
                setting = Setting(model, rows, length, precision, device, lengths)
                of_setting = measure(setting, tokenizer, arguments)
                print_table(of_setting)
                measurements += of_setting
                write_csv(out / "training.csv", table_rows(measurements), machine)
    write_plot(out / "training.png", table_rows(measurements), machine)
    print(f"\n{NOTES}\nwritten: {out}")


if __name__ == "__main__":
    main()
