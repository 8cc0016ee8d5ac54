"""What the figures of a benchmark depend on, and the folder and the table that they are kept in."""

import csv
import datetime
import os
import platform
import re
import textwrap
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "numba", "transformers", "numpy", "tokenizers")


def hardware() -> dict[str, Any]:
    """The machine, and the versions of the libraries."""
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "cpu": found[1].strip() if found else platform.processor() or platform.machine(),
        "cores": cores_available(),
        **{name: metadata.version(name) for name in LIBRARIES if util.find_spec(name)},
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cores_available() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def print_machine(machine: Mapping[str, Any]) -> None:
    """At 80 columns."""
    print(textwrap.fill(", ".join(f"{n} {v}" for n, v in machine.items() if v != ""), 80))


def results_folder(out: Path | None, machine: Mapping[str, Any]) -> Path:
    """The folder that the user named, or results/DATE-PROCESSOR; it is created."""
    name = re.sub(r"[^a-z0-9]+", "-", machine.get("gpu", machine["cpu"]).lower()).strip("-")[:32]
    folder = out or Path(__file__).parent / "results" / f"{machine['date']}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> None:
    """Rows of figures, each followed by the machine."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine])
        writer.writeheader()
        writer.writerows({**row, **machine} for row in rows)
