"""Runs in groups: those that differ by nothing but their seed have the same setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlmlab import schema
from mlmlab.analysis.runs import Run
from mlmlab.analysis.significance import Sample
from mlmlab.errors import Code, UserError

_NO_SETTINGS = (
    "seed",
    "name",
    "run_dir",
    "resume",
    "varies",
    "train.push_to_hub",
    "train.log_every_steps",
    "train.save_every_steps",
    "train.save_every_minutes",
    "train.keep_checkpoints",
    "eval.fill_mask",
    "tracking",
    "runtime.processes",
    "runtime.threads",
    "debug.profile_steps",
)
"""The seed, and keys and groups that do not change the weights but for the order of sums."""
_DIGESTS = ("data.fingerprint", "data.eval_fingerprint", "sources")
"""Keys and groups that follow from others, unless a file has changed."""


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs with the same values of all keys that vary."""

    values: Mapping[str, Any]
    """Of those keys."""
    runs: Mapping[int, Run]
    """By seed."""

    @property
    def label(self) -> str:
        """As one writes it in a command: KEY=VALUE KEY=VALUE."""
        values = (f"{key}={shown(key, value)}" for key, value in self.values.items())
        return " ".join(values) or "every run"

    @property
    def sample(self) -> Sample:
        """Its figures, for the statistics."""
        documents = {seed: run.documents for seed, run in self.runs.items() if run.documents}
        return Sample({seed: run.loss for seed, run in self.runs.items()}, documents)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The runs that were evaluated on the same tokens with the same masks, by their settings."""

    keys: tuple[str, ...]
    """The dotted keys that vary, without those that follow from others."""
    following: Mapping[str, str]
    """Keys that vary as one of `keys` does, with that one: what either does cannot be told
    apart."""
    settings: tuple[Setting, ...]
    repeated: tuple[Run, ...]
    """Runs left out, because a later one has the same setting and seed."""
    baseline: str | None = None
    """The label of the setting that the others are held against; None: the best one."""

    @property
    def samples(self) -> dict[str, Sample]:
        """The settings' figures, by label."""
        return {setting.label: setting.sample for setting in self.settings}


def comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """All runs, those whose figures do not compare apart from each other."""
    by_test: dict[str, list[Run]] = {}
    for run in runs:
        by_test.setdefault(run.test, []).append(run)
    return [_comparison(same) for same in by_test.values()]


def with_baseline(every: Sequence[Comparison], given: Mapping[str, Any]) -> list[Comparison]:
    """The comparisons, each with the setting of these values as its baseline.

    Raises:
        UserError: in one of them, no setting has these values, or several have.
    """
    chosen = []
    for comparison in every:
        matching = [
            setting.label
            for setting in comparison.settings
            if all(key in setting.values and setting.values[key] == given[key] for key in given)
        ]
        if len(matching) != 1:
            raise UserError.of(
                "--baseline",
                code=Code.NOT_FOUND if not matching else Code.CONFLICT,
                found=" ".join(f"{key}={schema.shown(value)}" for key, value in given.items())
                + (f", which {len(matching)} settings have" if matching else ", of no setting"),
                expected="one of " + "\n".join(setting.label for setting in comparison.settings),
                remedy="--baseline KEY=VALUE for each key that varies",
            )
        chosen.append(replace(comparison, baseline=matching[0]))
    return chosen


def _varying(runs: Sequence[Run], swept: set[str]) -> dict[str, list[Any]]:
    """The keys that differ between some runs, with the value of each; None where a run has no such
    key. Those that a sweep varies come first, and the checkpoint; digests last.

    Args:
        swept: what the sweeps vary.
    """
    known = [run for run in runs if len(run.config) > 1] or runs  # of others, the checkpoint alone
    keys = dict.fromkeys(key for run in known for key in run.config if not _is(key, _NO_SETTINGS))
    compared = {key: runs if key == "checkpoint" else known for key in keys}
    counts = {key: len({run.config.get(key) for run in compared[key]}) for key in keys}
    order = sorted(
        keys,
        key=lambda key: (_is(key, _DIGESTS), key not in swept, key != "checkpoint", -counts[key]),
    )
    return {key: [run.config.get(key) for run in runs] for key in order if counts[key] > 1}


def _comparison(runs: list[Run]) -> Comparison:
    swept = {key for run in runs for key in run.config.get("varies", ())}
    values = _varying(runs, swept)
    keys: list[str] = []
    following: dict[str, str] = {}
    for key, column in values.items():
        if _is(key, _DIGESTS):
            settings = list(zip(*(values[k] for k in keys), strict=True)) or [()] * len(runs)
            if len(set(zip(settings, column, strict=True))) > len(set(settings)):
                keys.append(key)
            continue
        pairs = {k: len(set(zip(values[k], column, strict=True))) for k in keys}
        one_to_one = [k for k in keys if pairs[k] == len(set(values[k])) == len(set(column))]
        if one_to_one and key not in swept:
            following[key] = one_to_one[0]
        else:
            keys.append(key)
    groups: dict[tuple[Any, ...], dict[int, Run]] = {}
    repeated = []
    for number, run in enumerate(runs):
        group = groups.setdefault(tuple(values[key][number] for key in keys), {})
        if run.seed in group:
            repeated.append(group[run.seed])
        group[run.seed] = run
    ordered = sorted(groups, key=lambda chosen: tuple(map(_order, chosen)))
    settings_found = tuple(
        Setting(dict(zip(keys, chosen, strict=True)), dict(sorted(groups[chosen].items())))
        for chosen in ordered
    )
    return Comparison(tuple(keys), following, settings_found, tuple(repeated))


def shown(key: str, value: Any) -> str:
    """A value as one writes it in a command; of a digest, its beginning."""
    text = schema.shown(value)
    return text[:12] if _is(key, _DIGESTS) else text


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, before texts."""
    if isinstance(value, int | float):
        return (False, float(value), "")
    return (True, 0.0, schema.shown(value))


def _is(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)
