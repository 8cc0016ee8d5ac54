"""evaluate_checkpoint(config): what `python -m mlmlab.evaluate` does, for notebooks and tests."""

import math
from dataclasses import dataclass
from typing import Any

from mlmlab import terminal
from mlmlab.config import EvaluateConfig
from mlmlab.inputs import gather_evaluation
from mlmlab.loader import EvalLoader
from mlmlab.micro_batch import Masker
from mlmlab.optimum import floor_perplexity
from mlmlab.tracking.progress import Progress, tokenization_bar
from mlmlab.training.config import Split
from mlmlab.training.evaluation import Evaluation, Score, evaluate
from mlmlab.training.precision import resolve


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """An evaluation, and of what."""

    evaluation: Evaluation
    floor_perplexity: float | None
    """The exact lowest perplexity on these blocks and masks; None where it is not known."""
    checkpoint: str
    """The folder, or owner/name@commit."""
    data: str
    split: Split
    documents: int
    tokens: int
    """Tokens of the scored documents."""
    examples: int
    dropped_tokens: int
    """Tokens behind the ends of documents that data.layout=lines cut off; else 0."""
    mask_draws: int

    def to_mapping(self) -> dict[str, Any]:
        """As strict JSON has it: losses in nats a token, null where a figure is not known."""
        evaluation = self.evaluation
        return {
            **_figures(evaluation),
            "loss_standard_error": _finite(evaluation.loss_standard_error),
            "perplexity_standard_error": _finite(evaluation.perplexity_standard_error),
            **{name: _figures(score) for name, score in evaluation.parts.items()},
            "floor_perplexity": self.floor_perplexity,
            "documents": self.documents,
            "examples": self.examples,
            "tokens": self.tokens,
            "dropped_tokens": self.dropped_tokens,
            "mask_draws": self.mask_draws,
            "split": self.split.value,
            "data": self.data,
            "checkpoint": self.checkpoint,
        }


def _figures(score: Score) -> dict[str, float | int | None]:
    return {
        "loss": _finite(score.loss),
        "perplexity": _finite(score.perplexity),
        "masked_tokens": score.masked_count,
        "top1_accuracy": _finite(score.top1_accuracy),
        "top5_accuracy": _finite(score.top5_accuracy),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def evaluate_checkpoint(config: EvaluateConfig, *, quiet: bool = False) -> EvaluationReport:
    """Scores a checkpoint on text.

    Args:
        config: from `mlmlab.compose_evaluation`.
        quiet: print nothing.

    Raises:
        UserError: the config or what it names is wrong.
    """
    compute = resolve(config.runtime)
    with tokenization_bar(quiet=quiet) as show:
        inputs = gather_evaluation(config, show)
    assert inputs.loaded is not None
    assert config.eval.split is not None
    progress = Progress(0, quiet=quiet)
    progress.line(terminal.evaluation_plan(config, inputs, compute))
    loader = EvalLoader(
        blocks=inputs.test,
        masker=Masker(config.masking, inputs.tokenizer.vocabulary(), compute.is_cuda),
        seed=config.eval.seed,
        batch_size=config.eval.batch_size,
        draws=config.eval.mask_draws,
    )
    evaluation = evaluate(inputs.model.to(compute.device), loader, compute, progress)
    floor = floor_perplexity(inputs, loader)
    progress.line(terminal.scores(evaluation, floor))
    return EvaluationReport(
        evaluation=evaluation,
        floor_perplexity=floor,
        checkpoint=inputs.loaded.resolved,
        data=inputs.text.source.description,
        split=config.eval.split,
        documents=inputs.test.shard.documents,
        tokens=len(inputs.test.shard.tokens),
        examples=len(inputs.test),
        dropped_tokens=inputs.test.dropped_tokens,
        mask_draws=config.eval.mask_draws,
    )
