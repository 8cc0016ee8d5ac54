"""What an evaluation scores, and how often."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from mlmlab.errors import Problem
from mlmlab.masking.config import EvalMaskingConfig

_MOST_DRAWS = 1 << 24
"""Draws that the random numbers' counter can tell apart (`random.EPOCHS`)."""


class Split(Enum):
    """Which documents are scored."""

    TEST = "test"
    ALL = "all"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """An evaluation."""

    seed: int
    """Decides the masks, the same at every evaluation."""
    mask_draws: int
    """How often each example is scored, each time with other masks: a smaller standard error."""
    max_examples: int | None
    """Score the first examples only: the fewest full chunks of 8,192 tokens that hold this many.
    null: all."""
    masking: EvalMaskingConfig
    """Which tokens are scored, whatever training masks. As a group: masking@eval.masking=NAME."""

    def problems(self) -> Iterator[Problem]:
        """Values out of range."""
        for name, example in (("mask_draws", 1), ("max_examples", 1000)):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield Problem(
                    f"eval.{name}", str(value), "more than zero", f"eval.{name}={example}"
                )
        if self.mask_draws > _MOST_DRAWS:
            yield Problem(
                "eval.mask_draws",
                str(self.mask_draws),
                f"at most {_MOST_DRAWS}",
                "eval.mask_draws=10",
            )


@dataclass(frozen=True, kw_only=True)
class TrainEvalConfig(EvalConfig):
    """The evaluations of a run."""

    every_steps: int | None
    """Steps between evaluations. null: one at the end of each epoch."""
    fill_mask: tuple[str, ...] | None
    """Sentences that the trained model completes at the end; <mask> stands for any model's mask.
    null: the small world's own for the small world, none for other text."""

    def problems(self) -> Iterator[Problem]:
        """Values out of range."""
        yield from super().problems()
        if self.every_steps is not None and self.every_steps < 1:
            yield Problem(
                "eval.every_steps", str(self.every_steps), "more than zero", "eval.every_steps=500"
            )


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(EvalConfig):
    """The evaluation of `python -m mlmlab.evaluate`."""

    split: Split | None
    """test: the test documents. all: every document. null: test for a run's own data, all for data
    that the user names."""
