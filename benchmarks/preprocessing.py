"""Tokens a second from a text file to blocks on disk: mlmlab, and `datasets.map` as the Hub's guide
uses it.

The text is English: paragraphs of Python's own documentation, drawn at random, a document a line.
The tokenizer is a byte-level BPE trained on them. Every sample is a fresh process, in interleaved
rounds; imports do not count. What each is given: `NOTES`.

    python benchmarks/preprocessing.py [--megabytes 50] [--rounds 3]
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import util
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from machine import cores_available, hardware, print_machine, results_folder, write_csv
from peak_memory import in_new_process, shown

from mlmlab.data.batch import Masker
from mlmlab.data.blocks import Order, PackedBlocks
from mlmlab.data.config import TokenizerKind
from mlmlab.data.corpus import is_test_document, open_corpus
from mlmlab.data.loader import TrainLoader
from mlmlab.data.python_docs import python_docs
from mlmlab.data.sources import FileSource
from mlmlab.data.tokenizer import load_tokenizer, train_tokenizer
from mlmlab.masking import MaskingConfig
from mlmlab.random import Seeds

BLOCK_SIZE, BATCH_SIZE = 128, 8
DOCUMENT_CHARACTERS = 600
"""About as many as an answer of ELI5 has."""
BATCH = 1024
"""Texts that the bare encode call is given at once, as in mlmlab."""
LIMIT = "encode_batch"
NOTES = """\
mlmlab        open_corpus: reads the file, digests it, tokenizes, writes; the blocks of 128 are
              then index arithmetic
datasets.map  the guide's two functions, batched: tokenize, and group_texts into blocks of 128.
              Reading the file into a data set does not count
encode_batch  the call of the tokenizers library alone, on texts in memory; ids are thrown away
first batch   with all of this in the cache: the file opened again, and the first 8 rows, masked
memory        peak of the process above imports and, for encode_batch, the texts; without that of
              the processes that datasets.map starts
"""
Work = Callable[[], tuple[float, int]]
"""Returns seconds, and the tokens in that time."""


def write_text(path: Path, megabytes: float) -> None:
    """Lines of English, a document each."""
    lines = (text.split("\n\n") for text in python_docs())
    paragraphs = [" ".join(p.split()) for document in lines for p in document if p.strip()]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        written = 0
        while written < megabytes * 1e6:
            document = ""
            while len(document) < draw.uniform(0, 2 * DOCUMENT_CHARACTERS):
                document += draw.choice(paragraphs) + " "
            written += file.write(document.strip() + "\n")


def ours(text: Path, folder: Path, cache: Path) -> Work:
    """The corpus of a run, in a cache that may have it."""
    os.environ["MLMLAB_CACHE"] = str(cache)
    tokenizer = load_tokenizer(folder)
    is_test_document(np.zeros(1, np.int64), 0.5, 0)  # at its first call numba imports the most

    def work() -> tuple[float, int]:
        begin = time.perf_counter()
        source = FileSource((text,))
        corpus = open_corpus(source, tokenizer, test_fraction=0.0, seed=0)
        blocks = PackedBlocks(corpus.train, BLOCK_SIZE)
        return time.perf_counter() - begin, len(blocks) * BLOCK_SIZE

    return work


def our_first_batch(text: Path, folder: Path, cache: Path) -> Work:
    """The corpus, its order and the loader."""
    os.environ["MLMLAB_CACHE"] = str(cache)
    tokenizer = load_tokenizer(folder)

    def work() -> tuple[float, int]:
        begin = time.perf_counter()
        corpus = open_corpus(FileSource((text,)), tokenizer, test_fraction=0.0, seed=0)
        blocks, seeds = PackedBlocks(corpus.train, BLOCK_SIZE), Seeds.of(0, 0, 0)
        order = Order(len(blocks), BATCH_SIZE, seeds.order)
        masker = Masker(MaskingConfig(), tokenizer.vocabulary())
        batch = next(TrainLoader(blocks, order, BATCH_SIZE, masker, seeds).batches(0, 0))
        return time.perf_counter() - begin, batch.token_count

    return work


def encode_batch(text: Path, folder: Path, _: Path) -> Work:
    """The tokenizers library alone."""
    backend = load_tokenizer(folder).backend
    texts = text.read_text(encoding="utf-8").splitlines()

    def work() -> tuple[float, int]:
        begin, tokens, waiting = time.perf_counter(), 0, iter(texts)
        while batch := list(islice(waiting, BATCH)):
            tokens += sum(len(encoding.ids) for encoding in backend.encode_batch_fast(batch))
        return time.perf_counter() - begin, tokens

    return work


def group_texts(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """The guide's, word for word but for names."""
    joined: dict[str, list[int]] = {key: sum(examples[key], []) for key in examples}  # noqa: RUF017 (as is)
    total = len(joined[next(iter(examples))])
    if total >= BLOCK_SIZE:
        total = (total // BLOCK_SIZE) * BLOCK_SIZE
    starts = range(0, total, BLOCK_SIZE)
    return {key: [ids[i : i + BLOCK_SIZE] for i in starts] for key, ids in joined.items()}


def mapped(text: Path, tokenizer: Any, cache: Path, processes: int | None) -> Any:
    """The data set after the guide's two functions, from the cache if it is there."""
    import datasets

    def tokenize(examples: dict[str, list[str]]) -> Any:
        return tokenizer(examples["text"])

    def apply(data: Any, function: Callable[..., Any], **options: Any) -> Any:
        return data.map(function, batched=True, num_proc=processes, **options)

    data = datasets.Dataset.from_text(str(text), cache_dir=str(cache))
    begin = time.perf_counter()
    data = apply(apply(data, tokenize, remove_columns=["text"]), group_texts)
    return data, time.perf_counter() - begin


def theirs(text: Path, folder: Path, cache: Path, processes: int | None) -> Work:
    """`datasets.map`, in an empty cache."""
    tokenizer = their_tokenizer(folder)

    def work() -> tuple[float, int]:
        data, seconds = mapped(text, tokenizer, cache, processes)
        return seconds, len(data) * BLOCK_SIZE

    return work


def their_first_batch(text: Path, folder: Path, cache: Path) -> Work:
    """The maps from the cache, and a DataLoader with the collator."""
    import torch
    from transformers import DataCollatorForLanguageModeling

    tokenizer = their_tokenizer(folder)

    def work() -> tuple[float, int]:
        begin = time.perf_counter()
        data, _ = mapped(text, tokenizer, cache, None)
        collator = DataCollatorForLanguageModeling(tokenizer)
        loader = torch.utils.data.DataLoader(data, BATCH_SIZE, shuffle=True, collate_fn=collator)
        batch = next(iter(loader))
        return time.perf_counter() - begin, batch["input_ids"].numel()

    return work


def their_tokenizer(folder: Path) -> Any:
    """The same tokenizer for the peer; and no progress bars."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    return PreTrainedTokenizerFast.from_pretrained(folder)


def measure(
    contenders: dict[str, Callable[..., Work]], text: Path, folder: Path, arguments: Any
) -> list[dict[str, Any]]:
    """Each in turn, in a fresh process with an empty cache; then with a warm one."""
    rows: list[dict[str, Any]] = []
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    tokens: dict[str, int] = {}
    memory: dict[str, list[int | None]] = {name: [] for name in contenders}
    for turn in range(arguments.rounds):
        for name in contenders if turn % 2 else reversed(contenders):
            with tempfile.TemporaryDirectory() as cache:
                (taken, tokens[name]), peak = in_new_process(
                    contenders[name], text, folder, Path(cache)
                )
            seconds[name].append(taken)
            memory[name].append(peak)
    for name in contenders:
        peaks = [peak for peak in memory[name] if peak is not None]
        rows.append(
            {
                "contender": name,
                "megabytes": arguments.megabytes,
                "tokens": tokens[name],
                "tokens_per_second": tokens[name] / statistics.median(seconds[name]),
                "fastest_seconds": min(seconds[name]),
                "slowest_seconds": max(seconds[name]),
                "peak_bytes": int(statistics.median(peaks)) if peaks else None,
                "rounds": arguments.rounds,
            }
        )
    return rows


def first_batch_seconds(
    first: Callable[..., Work], fill: Callable[..., Work], text: Path, folder: Path, rounds: int
) -> float:
    """The median of fresh processes that share a warm cache."""
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        in_new_process(fill, text, folder, cache)
        found = [in_new_process(first, text, folder, cache)[0][0] for _ in range(rounds)]
    return statistics.median(found)


def print_table(rows: list[dict[str, Any]], firsts: dict[str, float]) -> None:
    """Rates, and what mlmlab's is of each."""
    rate = rows[0]["tokens_per_second"]
    print(f"\n{'':<28}{'Mtok/s':>8}{'spread':>8}{'memory':>13}{'mlmlab is':>12}{'first batch':>13}")
    for row in rows:
        name, own = row["contender"], row["tokens_per_second"]
        spread = (row["slowest_seconds"] - row["fastest_seconds"]) / (row["tokens"] / own)
        line = f"{name:<28}{own / 1e6:8.3f}{spread:8.0%}{shown(row['peak_bytes']):>13}"
        if name == LIMIT:
            line += f"{rate / own:9.0%} of"
        else:
            line += f"{rate / own:10.2f} x" if name != "mlmlab" else f"{'':12}"
        print(line + (f"{firsts[name]:11.2f} s" if name in firsts else ""))


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="Times preprocessing against datasets.map.")
    parser.add_argument("--megabytes", type=float, default=50, help="of text (default: 50)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    machine = hardware()
    print_machine(machine)
    contenders: dict[str, Callable[..., Work]] = {"mlmlab": ours, LIMIT: encode_batch}
    firsts = {"mlmlab": (our_first_batch, ours)}
    if util.find_spec("datasets") is None:
        print("datasets is not installed (pip install datasets): mlmlab and encode_batch alone")
    else:
        alone, cores = "datasets.map, 1 process", cores_available()
        contenders[alone] = partial(theirs, processes=None)
        firsts[alone] = (their_first_batch, contenders[alone])
        if cores > 1:
            contenders[f"datasets.map, {cores} processes"] = partial(theirs, processes=cores)
    with tempfile.TemporaryDirectory() as name:
        folder, text = Path(name), Path(name) / "text.txt"
        write_text(text, arguments.megabytes)
        train_tokenizer(python_docs(), TokenizerKind.BPE, 30_000).save(folder)
        rows = measure(contenders, text, folder, arguments)
        seconds = {
            contender: first_batch_seconds(first, fill, text, folder, arguments.rounds)
            for contender, (first, fill) in firsts.items()
        }
    print_table(rows, seconds)
    for row in rows:
        row["first_batch_seconds"] = seconds.get(row["contender"])
    out = results_folder(arguments.out, machine)
    write_csv(out / "preprocessing.csv", rows, machine)
    print(f"\n{NOTES}\nwritten: {out / 'preprocessing.csv'}")


if __name__ == "__main__":
    main()
