"""What an evaluation scores, and how often."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mlmlab.errors import Code, Problem
from mlmlab.masking.config import EvalMaskingConfig
from mlmlab.schema import listed, setting

MASKED_PERPLEXITY = "masked_perplexity"
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


@dataclass(frozen=True, kw_only=True)
class TrainEvalConfig(EvalConfig):
    """The evaluations of a run."""

    every_steps: int | None = setting(None, at_least=1)
    """Steps between evaluations. null: one at the end of each epoch."""
    evaluators: tuple[str, ...] = listed(MASKED_PERPLEXITY)
    """What every evaluation asks: masked_perplexity, and package.module:name of one's own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of one's own evaluators: a mapping for each, by what follows its colon."""
    fill_mask: tuple[str, ...] | None = None
    """Sentences that the trained model completes at the end; <mask> stands for any model's mask.
    null: the small world's own for the small world, none for other text."""

    def problems(self) -> Iterator[Problem]:
        """Evaluators without the one that a run cannot do without, and options of none."""
        if MASKED_PERPLEXITY not in self.evaluators:
            yield Problem(
                "eval.evaluators",
                f"[{','.join(self.evaluators)}]",
                f"{MASKED_PERPLEXITY} among them: the best checkpoint is chosen by it",
                f"eval.evaluators=[{','.join((MASKED_PERPLEXITY, *self.evaluators))}]",
                code=Code.MISSING,
            )
        own = [name.partition(":")[2] for name in self.evaluators]
        if unused := [name for name in self.options if name not in own]:
            yield Problem(
                "eval.options",
                f"options for {', '.join(unused)}",
                "a mapping for each of eval.evaluators that has options",
                "eval.options.NAME.OPTION=VALUE, for eval.evaluators=[...,package.module:NAME]",
                code=Code.CONFLICT,
            )


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(EvalConfig):
    """The evaluation of `python -m mlmlab.evaluate`."""

    split: Split | None = None
    """test: the test documents. all: every document. null: test for a run's own data, all for data
    that the user names."""
