"""A checkpoint scored on text, in this process or as one of several."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from mlmlab import terminal
from mlmlab.config import EvaluateConfig
from mlmlab.errors import RunFailed
from mlmlab.gathering import gather_in_turn
from mlmlab.inputs import gather_evaluation
from mlmlab.loader import EvalLoader
from mlmlab.micro_batch import Masker
from mlmlab.optimum import floor_perplexity
from mlmlab.processes import LOST, World, joined
from mlmlab.tracking.progress import Progress
from mlmlab.training.config import Split
from mlmlab.training.evaluation import Evaluation, Score, evaluate
from mlmlab.training.precision import Compute, torch_settings, uses_cuda


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


_LOST = (
    "another process of the evaluation has ended, and it goes on with all of them or not at all.\n"
    "Why it ended, it may have said itself, further up; if it has not, it was killed (kill -9, or\n"
    "the system out of memory). Nothing was written: the same command evaluates again."
)


def score(config: EvaluateConfig, *, quiet: bool = False) -> EvaluationReport:
    """Scores a checkpoint on text; see `mlmlab.evaluate_checkpoint`."""
    with (
        joined(use_cuda=uses_cuda(config.runtime)) as world,
        torch_settings(config.runtime, world.local_rank) as device,
    ):
        try:
            return _evaluate(config, world, device, quiet=quiet or not world.is_first)
        except RunFailed as error:
            if error.args != (LOST,):
                raise
            raise RunFailed(_LOST) from error  # there is nothing to resume


def _evaluate(
    config: EvaluateConfig, world: World, device: torch.device, *, quiet: bool
) -> EvaluationReport:
    config, inputs = gather_in_turn(config, world, gather_evaluation, quiet=quiet)
    assert inputs.loaded is not None
    assert config.eval.split is not None
    compute = Compute.for_model(inputs.model.config.hidden_size, config.runtime, device)
    progress = Progress(0, quiet=quiet)
    progress.line(terminal.evaluation_plan(config, inputs, compute, world))
    loader = EvalLoader(
        blocks=inputs.test,
        masker=Masker(config.eval.masking, inputs.tokenizer.vocabulary(), compute.is_cuda),
        seed=config.eval.seed,
        draws=config.eval.mask_draws,
        max_examples=config.eval.max_examples,
    )
    model = inputs.model.to(compute.device)
    evaluation = evaluate(model, loader, compute, progress, world=world)
    floor = world.from_first(lambda: floor_perplexity(inputs, loader))
    progress.line(terminal.scores(evaluation, floor))
    return EvaluationReport(
        evaluation=evaluation,
        floor_perplexity=floor,
        checkpoint=inputs.loaded.resolved,
        data=inputs.text.source.description,
        split=config.eval.split,
        documents=inputs.test.shard.documents,
        tokens=inputs.test.shard.token_count,
        examples=loader.examples_per_draw,
        dropped_tokens=inputs.test.dropped_tokens,
        mask_draws=config.eval.mask_draws,
    )
