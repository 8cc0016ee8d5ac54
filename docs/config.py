"""Writes docs/config.md from the config's dataclasses.

python docs/config.py > docs/config.md
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlmlab import schema
from mlmlab.cli.commands import EVALUATE, TRAIN
from mlmlab.cli.compose import composed
from mlmlab.cli.keys import Key, keys, options_of

INTRODUCTION = """# Configuration

Every key of `python -m mlmlab.train`, with the value that it has in the default run. Another key,
or a value of another type, is refused. `python -m mlmlab.train --help masking` prints the same for
a group or a key, with the values that the rest of the command line gives:
`--help train +experiment=eli5`.

A group with options is a folder in `conf/`: `masking=spanbert` sets all keys of `masking` as
`conf/masking/spanbert.yaml` says. `--config-dir FOLDER` adds options from a folder of yours.

This page is written by `docs/config.py`.
"""


def page() -> str:
    """docs/config.md."""
    train = list(keys(TRAIN.kind))
    names = {key.name for key in train}
    only_evaluate = [key for key in keys(EVALUATE.kind) if key.name not in names]
    groups: dict[str, list[Key]] = {}
    for key in train:
        groups.setdefault(key.name.rpartition(".")[0], []).append(key)
    values = schema.flat(composed(TRAIN))
    parts = [INTRODUCTION]
    for group, members in groups.items():
        parts.append(f"## {f'`{group}`' if group else 'The run'}\n")
        if options := options_of(group):
            parts.append(f"{options}\n")
        parts.append(table(members, values))
    parts.append("## Keys that only `python -m mlmlab.evaluate` has\n")
    parts.append("The others of `data`, `eval` and `runtime` mean the same there.\n")
    parts.append(table(only_evaluate, schema.flat(composed(EVALUATE))))
    return "\n".join(parts)


def table(members: Sequence[Key], values: Mapping[str, Any]) -> str:
    """Markdown, a row per key."""
    rows = [
        f"| `{key.name}` | `{schema.shown(values[key.name])}` | {key.text} | {key.expected} |"
        for key in members
    ]
    head = ["| key | default | what it decides | takes |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    print(page(), end="")
