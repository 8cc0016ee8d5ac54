"""Resuming at step 1,000,000 against resuming at step 10: how long until the first step is done?

The command itself is measured, `python -m mlmlab.train resume=RUN`, from its start as a process to
its first line in metrics.jsonl, which it writes after each step here. Medians over processes that
are started in turn. Nothing is replayed or rebuilt, so the two should take the same time.

The run of 10 steps is a real one, on a text file of a few MB. The run of 1,000,000 steps is a copy
of its folder: the checkpoint's progress record names another step, and the content of both log
files is repeated 100,000 times, which makes a training line for every 10 steps and evaluations
between them. The text has been tokenized before.

    python benchmarks/resuming.py [--repeats 7]
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHORT, LONG = 10, 1_000_000
LOG_EVERY = 10
TEXT_BYTES = 4_000_000
RUN = (
    "data=text",
    "data.path=text.txt",
    "data.block_size=128",
    "tokenizer.vocabulary_size=1000",
    "train.batch_size=32",
    f"train.max_steps={SHORT}",
    f"train.log_every_steps={LOG_EVERY}",
    "train.save_every_minutes=null",
    "runtime.device=cpu",
    "runtime.precision=fp32",
    "runtime.threads=1",
)
RESUMED = (f"train.max_steps={2 * LONG}", "train.log_every_steps=1")


def command(*overrides: str) -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", "mlmlab.train", *overrides]


def write_text(path: Path) -> None:
    """Lines of words that a generator has drawn, a document each."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(2000)]
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < TEXT_BYTES:
            file.write(" ".join(draw.choices(words, k=40)) + "\n")


def lengthen(run_dir: Path) -> None:
    """Makes a run of `SHORT` steps look like one of `LONG` steps."""
    checkpoint = run_dir / "checkpoints" / f"step_{SHORT}"
    record = json.loads((checkpoint / "progress.json").read_text())
    progress = record["progress"]
    progress["batches"] = progress["steps"] = progress["best_step"] = LONG
    for name, size in progress["log_sizes"].items():
        content = (run_dir / name).read_bytes()[:size] * (LONG // LOG_EVERY)
        (run_dir / name).write_bytes(content)
        progress["log_sizes"][name] = len(content)
    (checkpoint / "progress.json").write_text(json.dumps(record, indent=2) + "\n")
    digests = json.loads((checkpoint / "digests.json").read_text())
    content = (checkpoint / "progress.json").read_bytes()
    digests["progress.json"] = hashlib.sha256(content).hexdigest()
    (checkpoint / "digests.json").write_text(json.dumps(digests, indent=2) + "\n")
    checkpoint.rename(checkpoint.with_name(f"step_{LONG}"))


def seconds_to_first_step(run_dir: Path, step: int) -> float:
    """Resumes a run, and kills it after its first step."""
    progress = run_dir / "checkpoints" / f"step_{step}" / "progress.json"
    sizes = json.loads(progress.read_text())["progress"]["log_sizes"]
    metrics = run_dir / "metrics.jsonl"
    os.truncate(metrics, sizes["metrics.jsonl"])  # of the lines that the resume before has written
    started = time.perf_counter()
    process = subprocess.Popen(
        command(f"resume={run_dir.name}", *RESUMED),
        cwd=run_dir.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while metrics.stat().st_size <= sizes["metrics.jsonl"]:
        if process.poll() is not None:
            raise SystemExit(process.communicate()[1])
        time.sleep(0.001)
    seconds = time.perf_counter() - started
    process.kill()
    process.communicate()
    with metrics.open("rb") as file:
        file.seek(sizes["metrics.jsonl"])
        assert json.loads(file.readline())["step"] == step + 1
    return seconds


def main() -> None:
    """Measures in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    found: dict[int, list[float]] = {SHORT: [], LONG: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MLMLAB_CACHE"] = str(folder / "cache")
        write_text(folder / "text.txt")
        runs = {step: folder / f"run_{step}" for step in found}
        first = runs[SHORT]
        subprocess.run(
            command(*RUN, f"run_dir={first.name}"), cwd=folder, check=True, capture_output=True
        )
        shutil.copytree(first, runs[LONG])
        lengthen(runs[LONG])
        logs = [runs[LONG] / "metrics.jsonl", *(runs[LONG] / "tensorboard").iterdir()]
        print(
            "log files of the long run:", *(f"{log.stat().st_size / 2**20:.0f} MiB" for log in logs)
        )
        for repeat in range(repeats + 1):
            for step in list(found)[:: (-1) ** repeat]:  # neither is always the first of a pair
                taken = seconds_to_first_step(runs[step], step)
                if repeat:  # the first one fills caches
                    found[step].append(taken)
    print(f"{'resumed at step':>16} {'to the first step':>18} {'fastest':>8} {'slowest':>8}")
    for step, seconds in found.items():
        median = statistics.median(seconds)
        print(f"{step:>16,} {median:>16.2f} s {min(seconds):>6.2f} s {max(seconds):>6.2f} s")
    ratio = statistics.median(found[LONG]) / statistics.median(found[SHORT])
    print(f"\nratio of the medians: {ratio:.2f}")


if __name__ == "__main__":
    main()
