"""Going on at batch 1,000,000 against going on at batch 10: how long until the first update?

A corpus of 1e9 examples whose ids are generated, not stored; a small model. Each measurement is a
process of its own, started in turn; medians. Nothing is replayed, so the two should cost the same.

    python benchmarks/resuming.py [--repeats 7]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = 10**9
BLOCK = 128
BATCHES = (10, 1_000_000)


def first_update(first: int, folder: Path) -> dict[str, float]:
    """Loads the state, finds batch `first`, and applies an update."""
    started = time.perf_counter()
    import numpy as np
    import torch

    import mlmlab
    from mlmlab.data.blocks import Rows
    from mlmlab.data.corpus import Shard
    from mlmlab.data.order import Order
    from mlmlab.data.tokenizer import word_tokenizer
    from mlmlab.loader import TrainLoader
    from mlmlab.masking import MaskingConfig, VocabularyInfo
    from mlmlab.micro_batch import Masker
    from mlmlab.model import Family, MaskedLanguageModel, ModelConfig
    from mlmlab.processes import ALONE
    from mlmlab.training.config import Precision
    from mlmlab.training.optimizer import build_optimizer
    from mlmlab.training.precision import Compute
    from mlmlab.training.replica import Replica
    from mlmlab.training.state import ProgressRecord, load_state, save_state
    from mlmlab.training.step import apply_update

    class GeneratedBlocks:
        """Example i is an arithmetic function of i."""

        shard = Shard(np.empty(0, np.uint16), np.array([0]), np.array([0, 0]))
        block_size = BLOCK
        dropped_tokens = 0
        even = EXAMPLES

        def __len__(self) -> int:
            return EXAMPLES

        def take(self, examples: np.ndarray) -> Rows:
            ids = (examples[:, None] * 31 + np.arange(BLOCK) * 7) % 990 + 5
            return Rows(ids.astype(np.uint16))

    imported = time.perf_counter()
    torch.set_num_threads(1)
    model = MaskedLanguageModel(
        ModelConfig(
            family=Family.ROBERTA, vocabulary_size=1000, hidden_size=128, layers=2, heads=4,
            intermediate_size=512, max_positions=BLOCK, position_offset=2, token_types=1,
            layer_norm_eps=1e-5, pad_id=1, dropout=0.1, attention_dropout=0.1,
            initializer_range=0.02,
        )
    )  # fmt: skip
    model.initialize(0)
    tokenizer = word_tokenizer([f"w{number}" for number in range(995)])
    replica = Replica(model, ALONE, Compute(torch.device("cpu"), Precision.FP32))
    optimizer = build_optimizer(model, mlmlab.compose().train)
    state = folder / f"step_{first}"
    if not state.exists():
        record = ProgressRecord(batches=first, updates=first)
        save_state(state, replica, tokenizer, optimizer, record, "")
    record = load_state(state, replica, optimizer)
    vocabulary = VocabularyInfo(1000, 4, (0, 1, 2, 3, 4))
    loader = TrainLoader(
        blocks=GeneratedBlocks(),  # type: ignore[arg-type]  # what a training needs of Blocks
        order=Order(EXAMPLES, 32, 0),
        micro_batch_size=32,
        masker=Masker(MaskingConfig(), vocabulary),
        seed=0,
    )
    batch = next(loader.batches(record.batches, record.updates))
    apply_update(
        replica, optimizer, batch,
        learning_rate=1e-4, max_grad_norm=1.0, seed=0, suppressed=torch.zeros(()),
    )  # fmt: skip
    now = time.perf_counter()
    return {
        "seconds": now - imported,
        "seconds_with_imports": now - started,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    """Measures in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one", nargs=2, metavar=("BATCH", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(first_update(int(arguments.one[0]), Path(arguments.one[1]))))
        return
    found: dict[int, list[dict[str, float]]] = {batch: [] for batch in BATCHES}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats + 1):
            for batch in BATCHES[:: (-1) ** repeat]:  # neither is always the first of a pair
                command = [sys.executable, __file__, "--one", str(batch), folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                if repeat:  # the first one fills caches
                    found[batch].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'first batch':>12} {'to the first update':>22} {'with imports':>14} {'memory':>10}")
    for batch, rows in found.items():
        seconds, whole, memory = (
            statistics.median(row[name] for row in rows)
            for name in ("seconds", "seconds_with_imports", "peak_memory_bytes")
        )
        spread = statistics.stdev(row["seconds"] for row in rows)
        print(
            f"{batch:>12,} {seconds:>13.3f} ± {spread:.3f} s {whole:>12.2f} s "
            f"{memory / 2**20:>6.0f} MiB"
        )


if __name__ == "__main__":
    main()
