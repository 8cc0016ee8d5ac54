"""Tokens a second in evaluation: mlmlab's `evaluate` and `Trainer.evaluate`.

Both score the same examples with the same weights, which transformers wrote, in interleaved rounds
in one process. Peak memory above weights and imports: each in a separate process, after an
evaluation of a single example.

    python benchmarks/evaluation.py [--model tiny] [--sizes 128x128] [--precisions fp32,bf16]
"""

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import hardware, print_machine, results_folder, write_csv
from numpy.typing import NDArray
from peak_memory import in_new_process, shown
from training import Setting, synchronize
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    PrinterCallback,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar

import mlmlab
from mlmlab.data.batch import Masker
from mlmlab.data.blocks import PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.data.loader import EvalLoader
from mlmlab.data.tokenizer import word_tokenizer
from mlmlab.evaluation.masked_perplexity import evaluate
from mlmlab.masking import EvalMaskingConfig
from mlmlab.model import ModelConfig
from mlmlab.model.flops import actual_flops, dense_equivalent_flops
from mlmlab.runtime.config import Precision
from mlmlab.system import keeping_freed_memory
from mlmlab.tracking.progress_bar import ProgressBar

disable_progress_bar()

MODELS = ("distilroberta", "roberta_base", "tiny")
VOCABULARY_SIZE = 50265
Evaluate = Callable[[NDArray[np.uint16]], float]
"""The mean loss on rows of ids."""


def write_checkpoint(folder: Path, model: str) -> None:
    """Random weights of a RoBERTa's shape and a tokenizer, as transformers writes them."""
    shape = mlmlab.compose(f"model={model}").model
    tokenizer = word_tokenizer([f"word{number}" for number in range(VOCABULARY_SIZE - 5)])
    assert shape.max_positions is not None
    config = RobertaConfig(
        vocab_size=VOCABULARY_SIZE, hidden_size=shape.hidden_size, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_positions + tokenizer.pad_id + 1, type_vocab_size=1,
        pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    torch.manual_seed(0)
    RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save(folder)


def ours(folder: Path, setting: Setting) -> Evaluate:
    """The evaluation of a run, and its loader."""
    model, tokenizer = mlmlab.load_pretrained(str(folder), quiet=True)
    model.to(setting.device)
    masker = Masker(
        EvalMaskingConfig(), tokenizer.vocabulary(), pin_memory=setting.compute.is_cuda
    )  # fmt: skip

    def run(rows: NDArray[np.uint16]) -> float:
        offsets = np.arange(0, rows.size + 1, rows.shape[1])  # a row, a document
        blocks = PackedBlocks(Shard(rows.ravel(), offsets[:-1], offsets), rows.shape[1])
        loader = EvalLoader(blocks, masker)
        with keeping_freed_memory():  # as in a run
            return evaluate(model, loader, setting.compute, ProgressBar(0, quiet=True)).loss

    return run


def theirs(folder: Path, setting: Setting) -> Evaluate:
    """`Trainer.evaluate` as the Hub's guide calls it."""
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), report_to=[], disable_tqdm=True,
        bf16=setting.precision is Precision.BF16, fp16=setting.precision is Precision.FP16,
        use_cpu=setting.device.type == "cpu",
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    trainer = Trainer(
        model=RobertaForMaskedLM.from_pretrained(folder).to(setting.device),
        args=arguments,
        data_collator=DataCollatorForLanguageModeling(tokenizer),
    )
    trainer.remove_callback(PrinterCallback)

    def run(rows: NDArray[np.uint16]) -> float:
        torch.manual_seed(0)  # of the collator's masks
        examples = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in rows]
        return float(trainer.evaluate(examples)["eval_loss"])

    return run


CONTENDERS = {"mlmlab": ours, "Trainer": theirs}


def prepared(folder: Path, setting: Setting, name: str) -> Callable[[], float]:
    """A contender with its weights and imports in memory."""
    run = CONTENDERS[name](folder, setting)
    rows = random_rows(setting)
    run(rows[:1])
    return partial(run, rows)


def random_rows(setting: Setting) -> NDArray[np.uint16]:
    """Rows of random tokens, none of them special."""
    draw = np.random.default_rng(0)
    return draw.integers(5, VOCABULARY_SIZE, (setting.rows, setting.length), np.uint16)


def memory_of(folder: Path, setting: Setting, name: str) -> int | None:
    """The peak above the weights."""
    if setting.device.type == "cpu":
        return in_new_process(prepared, folder, setting, name)[1]
    work = prepared(folder, setting, name)  # on CUDA only the device's memory is counted
    before = torch.cuda.memory_allocated(setting.device)
    torch.cuda.reset_peak_memory_stats(setting.device)
    work()
    return torch.cuda.max_memory_allocated(setting.device) - before


@dataclass
class Measurement:
    """A contender's rounds at one setting."""

    setting: Setting
    contender: str
    loss: float
    memory: int | None
    seconds: list[float]

    @property
    def tokens_per_second(self) -> float:
        return self.setting.tokens / statistics.median(self.seconds)


def measure(folder: Path, setting: Setting, rounds: int) -> list[Measurement]:
    """Each in turn, and then memory."""
    runs = {name: prepared(folder, setting, name) for name in CONTENDERS}
    them = [Measurement(setting, name, runs[name](), None, []) for name in CONTENDERS]
    for turn in range(rounds):
        for one in them if turn % 2 else reversed(them):
            synchronize(setting.device)
            begin = time.perf_counter()
            runs[one.contender]()
            synchronize(setting.device)
            one.seconds.append(time.perf_counter() - begin)
    del runs
    return [replace(one, memory=memory_of(folder, setting, one.contender)) for one in them]


def print_table(folder: Path, measurements: list[Measurement]) -> None:
    """One setting."""
    first, peer = measurements
    setting = first.setting
    print(f"\n{setting!s:<32}{'tok/s':>10}{'spread':>8}{'memory':>13}{'loss':>9}")
    for m in measurements:
        spread = (max(m.seconds) - min(m.seconds)) / statistics.median(m.seconds)
        line = f"  {m.contender:<30}{m.tokens_per_second:10,.0f}{spread:8.0%}{shown(m.memory):>13}"
        print(f"{line}{m.loss:9.4f}")
    config: ModelConfig = mlmlab.load_pretrained(str(folder), quiet=True)[0].config
    size = {"examples": setting.rows, "length": setting.length}
    dense = dense_equivalent_flops(config, **size)
    flops = dense / actual_flops(config, **size, predicted=round(0.15 * setting.tokens))
    line = f"  mlmlab is {first.tokens_per_second / peer.tokens_per_second:.2f} times as fast"
    if first.memory is not None and peer.memory is not None:
        line += f", with {first.memory / max(1, peer.memory):.2f} of the memory"
    print(f"{line}; Trainer computes {flops:.2f} times the FLOPs", flush=True)


def table_rows(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """A row for each contender and setting."""
    return [
        {
            "model": m.setting.model,
            "rows": m.setting.rows,
            "tokens_per_row": m.setting.length,
            "precision": m.setting.precision.value,
            "contender": m.contender,
            "tokens_per_second": f"{m.tokens_per_second:.6g}",
            "fastest_seconds": f"{min(m.seconds):.4g}",
            "slowest_seconds": f"{max(m.seconds):.4g}",
            "peak_bytes_above_weights": m.memory,
            "loss": f"{m.loss:.6g}",
            "rounds": len(m.seconds),
        }
        for m in measurements
    ]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--model", default="distilroberta", choices=MODELS)
    sizes = "4096x128" if cuda else "128x128"
    parser.add_argument("--sizes", default=sizes, help=f"ROWSxTOKENS,... (default: {sizes})")
    parser.add_argument("--precisions", default="fp32,bf16", help="of fp32, bf16, fp16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*(,[1-9]\d*x[1-9]\d*)*", arguments.sizes):
        parser.error(f"--sizes {arguments.sizes}: ROWSxTOKENS,... for instance 128x128,32x512")
    return arguments


def main() -> None:
    """Measures, prints, writes."""
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = hardware() | {"torch_threads": torch.get_num_threads()}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    print_machine(machine)
    out = results_folder(arguments.out, machine)
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder, arguments.model)
        for shape in arguments.sizes.split(","):
            rows, length = map(int, shape.split("x"))
            for precision in map(Precision, arguments.precisions.split(",")):
                setting = Setting(arguments.model, rows, length, precision, device)
                measurements += measure(folder, setting, arguments.rounds)
                print_table(folder, measurements[-len(CONTENDERS) :])
                write_csv(out / "evaluation.csv", table_rows(measurements), machine)
    print(f"\nwritten: {out / 'evaluation.csv'}")


if __name__ == "__main__":
    main()
