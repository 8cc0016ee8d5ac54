"""What an evaluation scores, and how often."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mlmlab import seams
from mlmlab.errors import Code, Problem
from mlmlab.masking.config import EvalMaskingConfig
from mlmlab.schema import listed, setting

MASKED_PERPLEXITY = "masked_perplexity"
LOSS, PERPLEXITY = "eval/loss", "eval/perplexity"
"""The tags of its figures; those of custom evaluators are eval/NAME/FIGURE."""
_MOST_DRAWS = 1 << 24
"""Draws that the random numbers' counter can tell apart (`random.EPOCHS`)."""


class Split(Enum):
    """Which documents are scored."""

    TEST = "test"
    ALL = "all"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """An evaluation."""

    seed: int = 0
    """Decides the masks, the same at every evaluation."""
    mask_draws: int = setting(1, at_least=1, at_most=_MOST_DRAWS)
    """How often each example is scored, each time with other masks: a smaller standard error."""
    max_examples: int | None = setting(None, at_least=1)
    """Score the first examples only: the fewest full chunks of 8,192 tokens that hold this many.
    null: all."""
    masking: EvalMaskingConfig = field(default_factory=EvalMaskingConfig)
    """Which tokens are scored, whatever training masks. As a group: masking@eval.masking=NAME."""
    evaluators: tuple[str, ...] = listed(MASKED_PERPLEXITY)
    """What an evaluation asks: masked_perplexity, and a custom package.module:name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of custom evaluators: a mapping for each, by what follows its colon."""

    def problems(self) -> Iterator[Problem]:
        """No masked perplexity, an evaluator twice, and options of none."""
        yield from seams.list_problems(
            "eval.evaluators",
            self.evaluators,
            "eval.options",
            self.options,
            needed=MASKED_PERPLEXITY,
            because="its loss and perplexity are part of every result",
        )


class MonitorMode(Enum):
    """Which way a figure improves."""

    MIN = "min"
    MAX = "max"


@dataclass(frozen=True, kw_only=True)
class TrainEvalConfig(EvalConfig):
    """The evaluations of a run."""

    every_steps: int | None = setting(None, at_least=1)
    """Steps between evaluations. null: one at the end of each epoch."""
    monitor: str = LOSS
    """The figure that best checkpoints, early stopping and the result of a sweep's job go by:
    eval/loss, eval/perplexity, or eval/NAME/FIGURE of a custom evaluator."""
    monitor_mode: MonitorMode | None = None
    """min: less of it is better; max: more. null: min, for eval/loss and eval/perplexity alone."""
    fill_mask: tuple[str, ...] | None = None
    """Sentences that the model completes at every evaluation and at the end; <mask> stands for any
    model's mask. null: at the end of a run on the small world, its own sentences."""

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the evaluators, a figure that none of them has, and its mode."""
        yield from super().problems()
        if self.monitor in (LOSS, PERPLEXITY):
            if self.monitor_mode is MonitorMode.MAX:
                yield Problem(
                    "eval.monitor_mode",
                    f"max, with eval.monitor={self.monitor}",
                    "min: the lower, the better the model",
                    "eval.monitor_mode=null, or eval.monitor=eval/NAME/FIGURE",
                    code=Code.CONFLICT,
                )
        elif len(self.evaluators) == 1:
            yield Problem(
                "eval.monitor",
                self.monitor,
                f"{LOSS} or {PERPLEXITY}; other figures come from your own eval.evaluators",
                f"eval.monitor={LOSS}",
                code=Code.INVALID,
            )
        elif self.monitor_mode is None:
            yield Problem(
                "eval.monitor_mode",
                f"null, with eval.monitor={self.monitor}",
                "min or max: whether less or more of it is better",
                "eval.monitor_mode=max",
                code=Code.MISSING,
            )

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value of the monitored figure is better than the best one before it (None:
        there is none). An equal one is no better."""
        if best is None:
            return True
        return value > best if self.monitor_mode is MonitorMode.MAX else value < best


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(EvalConfig):
    """The evaluation of `python -m mlmlab.evaluate`."""

    split: Split | None = None
    """test: the test documents. all: every document. null: test for a run's own data, all for data
    that the user names."""
