"""What to mask: the policy (`MaskingPolicy`), and how it changes over a run (`MaskingConfig`)."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from mlmlab import schema
from mlmlab.errors import Code, Problem
from mlmlab.schema import named, setting

UNITS = ("token", "word", "span")
"""What is selected together by the built-in policies."""


class Corrupt(Enum):
    """Whether mask / random / keep is drawn for each token or once for its unit."""

    TOKEN = "token"
    UNIT = "unit"


class Budget(Enum):
    """Whether units are selected independently, or the same share in every example."""

    BERNOULLI = "bernoulli"
    EXACT = "exact"


class MaskingMode(Enum):
    """Whether the masks change from epoch to epoch."""

    DYNAMIC = "dynamic"
    STATIC = "static"


class RateSchedule(Enum):
    """How the rate moves with the steps applied."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    STEPS = "steps"


_WORD = 2.0**32


@dataclass(frozen=True, kw_only=True)
class MaskingPolicy:
    """Which tokens are predicted, and what replaces them (Devlin et al. 2019, section 3.1,
    and its later variants)."""

    rate: float = setting(0.15, at_least=0, at_most=1)
    """Share of the tokens that are selected, that is, predicted."""
    unit: str = named(*UNITS)
    """token; word: all tokens of a word together; span: runs of whole words (SpanBERT). Or
    a custom package.module:name policy, which selects the tokens (`masking/policy.py`)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of a custom policy."""
    corrupt: Corrupt = Corrupt.TOKEN
    """token: each selected token is masked, replaced or kept by itself. unit: its unit at once."""
    mask_fraction: float = setting(0.8, at_least=0, at_most=1)
    """Share of the selected tokens that become the mask token."""
    random_fraction: float = setting(0.1, at_least=0, at_most=1)
    """Share that become a random id; the rest keep their own."""
    budget: Budget = Budget.BERNOULLI
    """bernoulli: every unit is selected by itself, with chance `rate`. exact: in each example units
    in random order until the share of their tokens is `rate`; the unit that would cross it comes in
    with the chance that makes the mean exact. Single tokens are selected alike; of words, those of
    four tokens 4% less often than 15% in rows of 128 tokens, 1% less in rows of 512."""

    path = "masking"
    """The dotted key of a policy, for messages; no field."""

    def problems(self) -> Iterator[Problem]:
        """Shares that add up to more than 1, and a budget of a custom policy."""
        if self.mask_fraction + self.random_fraction > 1.0 + 1e-9:
            yield Problem(
                f"{self.path}.mask_fraction + {self.path}.random_fraction",
                f"{self.mask_fraction} + {self.random_fraction}",
                "a sum of at most 1; what is left is the share of kept tokens",
                f"for instance {self.path}.mask_fraction=0.8 {self.path}.random_fraction=0.1",
                code=Code.CONFLICT,
            )
        if self.budget is Budget.EXACT and self.unit not in UNITS:
            yield Problem(
                f"{self.path}.budget",
                f"exact, with {self.path}.unit={self.unit}",
                "bernoulli: your own policy decides itself how many tokens it selects",
                f"{self.path}.budget=bernoulli, or {self.path}.unit={UNITS[0]}",
                code=Code.CONFLICT,
            )

    @cached_property
    def is_independent(self) -> bool:
        """Whether every token is selected by itself: then one random word per token decides all."""
        return self.unit == "token" and self.budget is Budget.BERNOULLI

    @cached_property
    def thresholds(self) -> tuple[int, int, int, int]:
        """Where a 32-bit word is cut: below the first a token is masked, below the second replaced;
        below the third a unit is selected. The same word decides both where tokens are
        independent, so that the first two then are shares of the third.

        The fourth: six standard deviations of one draw; an exact budget sorts no more words than it
        is likely to take.
        """
        scale = self.rate if self.is_independent else 1.0
        cuts = (
            scale * self.mask_fraction,
            scale * min(1.0, self.mask_fraction + self.random_fraction),
            self.rate,
            6.0 * math.sqrt(self.rate * (1.0 - self.rate)),
        )
        mask, replace, select, spread = (round(cut * _WORD) for cut in cuts)
        return mask, replace, select, spread

    @cached_property
    def corruption_thresholds(self) -> tuple[int, int]:
        """Where the word of a token that is selected already is cut: below the first it is masked,
        below the second replaced."""
        replace = min(1.0, self.mask_fraction + self.random_fraction)
        return round(self.mask_fraction * _WORD), round(replace * _WORD)

    @cached_property
    def problem_text(self) -> str:
        """All problems, or an empty text: looked at for every batch."""
        return "\n".join(map(str, schema.all_problems(self, self.path)))


@dataclass(frozen=True, kw_only=True)
class MaskingConfig(MaskingPolicy):
    """The policy of a training run, whose masks and rate may change over the run."""

    mode: MaskingMode = MaskingMode.DYNAMIC
    """dynamic: new masks each epoch (RoBERTa). static: the same ones (the original BERT)."""
    schedule: RateSchedule = RateSchedule.CONSTANT
    """constant: `rate`. linear, cosine: from `start_rate` to `rate` over the run. steps:
    `rate_steps`."""
    start_rate: float | None = setting(None, above=0, at_most=1)
    """The first step's rate, for linear and cosine."""
    rate_steps: tuple[str, ...] = ()
    """For steps: "STEP:RATE" each, ascending; before the first of them the rate is `rate`."""

    def problems(self) -> Iterator[Problem]:
        """Those of any policy, and a schedule without its rates."""
        yield from super().problems()
        moves = self.schedule in (RateSchedule.LINEAR, RateSchedule.COSINE)
        if moves != (self.start_rate is not None):
            yield Problem(
                "masking.start_rate",
                f"{'null' if self.start_rate is None else self.start_rate}, with "
                f"masking.schedule={self.schedule.value}",
                "the first rate of a linear or cosine schedule; null for the others",
                "masking.schedule=linear masking.start_rate=0.3",
                code=Code.CONFLICT,
            )
        rates = self.rates_by_step()
        steps = [step for step, _ in rates or ()]
        is_sound = (
            rates is not None
            and steps == sorted(set(steps))
            and all(rate > 0.0 for _, rate in rates)
        )
        if not is_sound or bool(self.rate_steps) != (self.schedule is RateSchedule.STEPS):
            yield Problem(
                "masking.rate_steps",
                f"[{','.join(self.rate_steps)}], with masking.schedule={self.schedule.value}",
                "STEP:RATE texts, steps ascending, rates above 0; for masking.schedule=steps",
                "masking.schedule=steps \"masking.rate_steps=['1000:0.2','5000:0.15']\"",
                code=Code.CONFLICT,
            )

    def rates_by_step(self) -> list[tuple[int, float]] | None:
        """`rate_steps` as numbers; None if one of them is not STEP:RATE."""
        found = []
        for text in self.rate_steps:
            match = re.fullmatch(r"(\d+):(0(?:\.\d+)?|1(?:\.0+)?|\.\d+)", text)
            if match is None:
                return None
            found.append((int(match[1]), float(match[2])))
        return found

    @property
    def highest_rate(self) -> float:
        """The highest rate of any step."""
        later = [rate for _, rate in self.rates_by_step() or ()]
        return max(self.rate, self.start_rate or 0.0, *later)

    def rate_at(self, step: int, total_steps: int) -> float:
        """The rate of a step, a pure function of its number.

        Args:
            step: steps applied before it.
            total_steps: of the run.
        """
        if self.schedule is RateSchedule.STEPS:
            rates = self.rates_by_step()
            assert rates is not None
            return next((rate for first, rate in reversed(rates) if step >= first), self.rate)
        if self.start_rate is None:
            return self.rate
        done = min(1.0, step / max(1, total_steps - 1))
        if self.schedule is RateSchedule.COSINE:
            done = (1.0 - math.cos(math.pi * done)) / 2.0
        return self.start_rate + done * (self.rate - self.start_rate)


@dataclass(frozen=True, kw_only=True)
class EvalMaskingConfig(MaskingPolicy):
    """The policy of evaluations. It never changes, so that the figures of a run, and of runs that
    train with other policies, compare."""

    rate: float = setting(0.15, above=0, at_most=1)
    """Share of the tokens that are selected, that is, scored."""
    path = "eval.masking"
