"""A checkpoint scored on text, in this process or as one of several."""

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlmlab import schema
from mlmlab.config import EvaluateConfig
from mlmlab.data.batch import Masker
from mlmlab.data.loader import EvalLoader
from mlmlab.errors import Code, UserError
from mlmlab.evaluation.config import Split
from mlmlab.evaluation.documents import EVALUATION
from mlmlab.evaluation.evaluators import build_evaluators, figures_of
from mlmlab.evaluation.masked_perplexity import Evaluation, Score, evaluate
from mlmlab.evaluation.small_world_floor import Floor, exact_floor
from mlmlab.runs import terminal
from mlmlab.runs.setup import on_rank_zero_first, set_up_evaluation
from mlmlab.runtime.devices import Compute, torch_settings, uses_cuda
from mlmlab.runtime.distributed import Ranks, process_group
from mlmlab.tracking.progress_bar import ProgressBar


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """An evaluation, and of what."""

    evaluation: Evaluation
    own_figures: Mapping[str, float]
    """Those of the user's own evaluators, by tag (eval/NAME/...)."""
    floor: Floor | None
    """The exact lowest perplexities on these blocks and masks; None where they are not known."""
    checkpoint: str
    """The folder, or owner/name@commit."""
    data: str
    split: Split
    documents: int
    tokens: int
    """Tokens of the scored documents."""
    examples: int
    dropped_tokens: int
    """Tokens that data.layout=lines cut off at the ends of documents; else 0."""
    mask_draws: int

    def to_mapping(self) -> dict[str, Any]:
        """As strict JSON has it: losses in nats per token, null where a figure is not known."""
        evaluation = self.evaluation
        floors = self.floor.parts if self.floor else {}
        return {
            **_figures(evaluation),
            "loss_standard_error": _finite(evaluation.loss_standard_error),
            "perplexity_standard_error": _finite(evaluation.perplexity_standard_error),
            **{
                name: _figures(score) | {"floor_perplexity": floors.get(name)}
                for name, score in evaluation.parts.items()
            },
            "own_figures": {tag: _finite(value) for tag, value in self.own_figures.items()},
            "floor_perplexity": self.floor.perplexity if self.floor else None,
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


def score(
    config: EvaluateConfig, *, documents: Sequence[str] | None = None, quiet: bool = False
) -> EvaluationReport:
    """Scores a checkpoint on text; see `mlmlab.evaluate_checkpoint`."""
    if_lost = "Nothing was written: the same command evaluates again."
    with (
        process_group(use_cuda=uses_cuda(config.runtime), if_lost=if_lost) as ranks,
        torch_settings(config.runtime, ranks.local_rank) as device,
    ):
        quiet = quiet or not ranks.is_rank_zero
        return _evaluate(config, ranks, device, documents, quiet=quiet)


def _evaluate(
    config: EvaluateConfig,
    ranks: Ranks,
    device: torch.device,
    documents: Sequence[str] | None,
    *,
    quiet: bool,
) -> EvaluationReport:
    evaluators = build_evaluators(config.eval, config)
    config, inputs = on_rank_zero_first(
        lambda config, show: set_up_evaluation(config, show, documents), config, ranks, quiet=quiet
    )
    assert inputs.loaded is not None
    if config.out is not None:
        ranks.on_rank_zero(lambda: _create(Path(str(config.out))))
    compute = Compute.for_model(inputs.model.config.hidden_size, config.runtime, device)
    bar = ProgressBar(0, quiet=quiet)
    bar.line(terminal.evaluation_plan(config, inputs, compute, ranks))
    loader = EvalLoader(
        blocks=inputs.test,
        masker=Masker(
            config.eval.masking,
            inputs.tokenizer.vocabulary(),
            inputs.seeds.eval_masks,
            pin_memory=compute.is_cuda,
        ),
        draws=config.eval.mask_draws,
        max_examples=config.eval.max_examples,
    )
    model = inputs.model.to(compute.device)
    evaluation = evaluate(model, loader, compute, bar, ranks=ranks)
    own_figures = figures_of(evaluators, model, inputs.tokenizer, compute.device, ranks)
    floor = None
    if inputs.has_known_floor:
        floor = ranks.on_rank_zero(lambda: exact_floor(inputs.tokenizer, loader))
    bar.line(terminal.scores(evaluation, floor, own_figures))
    report = EvaluationReport(
        evaluation=evaluation,
        own_figures=own_figures,
        floor=floor,
        checkpoint=inputs.loaded.resolved,
        data=inputs.text.source.description,
        split=config.eval.split or Split.ALL,
        documents=inputs.test.shard.documents,
        tokens=inputs.test.shard.token_count,
        examples=loader.examples_per_draw,
        dropped_tokens=inputs.test.dropped_tokens,
        mask_draws=config.eval.mask_draws,
    )
    if config.out is not None and ranks.is_rank_zero:
        _keep(report, config, Path(config.out))
    return report


def _create(folder: Path) -> None:
    """The folder of an evaluation that is kept, before anything is scored."""
    reason = "there is an evaluation in it" if (folder / EVALUATION).exists() else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    if reason is None and not os.access(folder, os.W_OK):
        reason = os.strerror(errno.EACCES)
    if reason is not None:
        raise UserError.of(
            "out",
            code=Code.NOT_WRITABLE,
            found=f"{folder}: {reason}",
            expected="a folder that can be written, without an evaluation in it",
            remedy="out=ANOTHER_FOLDER",
        )


def _keep(report: EvaluationReport, config: EvaluateConfig, folder: Path) -> None:
    report.evaluation.by_document.write(folder)
    content = report.to_mapping() | {"config": schema.to_mapping(config)}
    (folder / EVALUATION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
