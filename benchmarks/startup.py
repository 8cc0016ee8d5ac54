"""How long until a command answers: --help, a wrong key, the first step, fill_mask's first answer.

Each sample is a fresh process, timed from its start. The peer is `import hydra`, without which none
of the commands that compose a config can begin. The rounds are interleaved, and a first one, which
fills the caches (bytecode, compiled kernels, the built-in corpus), is not counted.

A second table says what the imports of some of these processes cost, by package, as
`python -X importtime` measures it: the time in a package's own modules. Lazy imports count, too.

    python benchmarks/startup.py [--rounds 7]
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from machine import hardware, print_machine, results_folder, write_csv

import mlmlab
from mlmlab.cli.commands import COMMANDS

BASE = "import hydra"
FIRST_STEP = "train, its first step"
FIRST_ANSWER = "fill_mask, its first answer"
TEXT = "the day after monday is <mask> ."
STANDARD_LIBRARY = "standard library"
LEAST_MS = 10.0
"""A package that costs less everywhere is counted among the others."""


@dataclass(frozen=True)
class Case:
    """A process, and when it has answered."""

    name: str
    arguments: tuple[str, ...]
    """Of Python."""
    status: int = 0
    answer: Callable[[Path], bool] | None = None
    """Whether it has answered, by the folder it runs in; the process is killed then. None: it
    answers by ending."""


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """The arguments of Python for a command."""
    return ("-m", f"mlmlab.{name}", *arguments)


def has_logged_a_step(folder: Path) -> bool:
    """Whether the run has written the line of its first step."""
    metrics = folder / "run" / "metrics.jsonl"
    return metrics.is_file() and '"train/loss"' in metrics.read_text(encoding="utf-8")


def cases(model: Path) -> list[Case]:
    """All of them.

    Args:
        model: a run's folder, whose model fills the mask.
    """
    first_step = module("train", "run_dir=run", "train.log_every_steps=1")
    return [
        Case(BASE, ("-c", BASE)),
        *(Case(f"{name} --help", module(name, "--help")) for name in COMMANDS),
        Case("train, a wrong key", module("train", "train.epoch=3"), status=2),
        Case("evaluate, a wrong key", module("evaluate", "eval.draws=3"), status=2),
        Case(FIRST_STEP, first_step, answer=has_logged_a_step),
        Case(FIRST_ANSWER, module("fill_mask", "--checkpoint", str(model), TEXT)),
    ]


def seconds_of(case: Case, environment: dict[str, str]) -> float:
    """Until the answer, in an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *case.arguments],
            cwd=name,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while case.answer is not None and process.poll() is None:
            if case.answer(Path(name)):
                seconds = time.perf_counter() - begin
                process.kill()
                process.communicate()
                return seconds
            time.sleep(0.001)
        _, errors = process.communicate()
        seconds = time.perf_counter() - begin
    if case.answer is not None or process.returncode != case.status:
        raise SystemExit(f"{case.name}: status {process.returncode}\n{errors.decode()}")
    return seconds


def import_milliseconds(case: Case, environment: dict[str, str]) -> dict[str, float]:
    """The time in each package's own modules while they are imported."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-X", "importtime", *case.arguments]
        done = subprocess.run(command, cwd=name, env=environment, capture_output=True, text=True)
    found: dict[str, float] = defaultdict(float)
    for own, imported in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", done.stderr, re.M):
        package = imported.partition(".")[0]
        name = STANDARD_LIBRARY if package in sys.stdlib_module_names else package
        found[name] += int(own) / 1e3
    return found


def print_times(samples: dict[str, list[float]]) -> None:
    """A line for each case."""
    base = statistics.median(samples[BASE])
    print(f"\n{'':<29}{'median':>9}{'fastest':>9}{'slowest':>9}{'over hydra':>12}")
    for name, seconds in samples.items():
        median = statistics.median(seconds)
        line = f"{name:<29}{median:7.2f} s{min(seconds):7.2f} s{max(seconds):7.2f} s"
        print(line + (f"{median - base:10.2f} s" if name != BASE else ""))


def print_imports(samples: dict[str, list[dict[str, float]]]) -> None:
    """A column for each case, numbered, and a line for each package."""
    medians = {
        name: {
            package: statistics.median(round_.get(package, 0.0) for round_ in rounds)
            for package in {package for round_ in rounds for package in round_}
        }
        for name, rounds in samples.items()
    }
    print("\nms of imports, by package")
    for number, name in enumerate(medians, 1):
        print(f"  ({number}) {name}")
    columns = list(medians.values())
    most = {
        package: max(column.get(package, 0.0) for column in columns)
        for package in {package for column in columns for package in column}
    }
    shown = sorted((p for p in most if most[p] >= LEAST_MS), key=lambda package: -most[package])
    rows = {package: [column.get(package, 0.0) for column in columns] for package in shown}
    rows["others"] = [sum(c[p] for p in c if p not in shown) for c in columns]
    rows["all"] = [sum(column.values()) for column in columns]
    print(f"{'':<20}" + "".join(f"{f'({number})':>8}" for number in range(1, len(columns) + 1)))
    for package, times in rows.items():
        print(f"{package:<20}" + "".join(f"{milliseconds:8.0f}" for milliseconds in times))


def main() -> None:
    """Measures in turn, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    machine = hardware()
    print_machine(machine)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = str(Path(mlmlab.__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "MLMLAB_CACHE": str(folder / "cache")}
        trained = module("train", "debug=one_step", "run_dir=model")
        subprocess.run(
            [sys.executable, *trained], cwd=folder, env=environment, check=True, capture_output=True
        )
        them = cases(folder / "model")
        times: dict[str, list[float]] = {case.name: [] for case in them}
        imports: dict[str, list[dict[str, float]]] = {
            case.name: [] for case in them if case.answer is None and "wrong" not in case.name
        }
        for turn in range(arguments.rounds + 1):
            for case in them if turn % 2 else reversed(them):
                seconds = seconds_of(case, environment)
                if turn:
                    times[case.name].append(seconds)
                    if case.name in imports:
                        imports[case.name].append(import_milliseconds(case, environment))
    print_times(times)
    print_imports(imports)
    rows = [
        {
            "case": name,
            "seconds": f"{statistics.median(seconds):.4g}",
            "fastest_seconds": f"{min(seconds):.4g}",
            "slowest_seconds": f"{max(seconds):.4g}",
            "rounds": len(seconds),
        }
        for name, seconds in times.items()
    ]
    out = results_folder(arguments.out, machine)
    write_csv(out / "startup.csv", rows, machine)
    print(f"\nwritten: {out / 'startup.csv'}")


if __name__ == "__main__":
    main()
