"""Masked perplexity on the test set: sums and counts until the last moment."""

import math
from dataclasses import dataclass

import torch

from mlmlab.loader import EvalLoader
from mlmlab.model import MaskedLanguageModel, token_losses
from mlmlab.tracking.progress import Progress
from mlmlab.training.precision import Compute


@dataclass(frozen=True)
class Evaluation:
    """A sum, a count, and how sure they are."""

    loss_sum: float
    """Negative log-likelihood in nats, summed in float64 over the predicted tokens."""
    masked_count: int
    loss_standard_error: float
    """Of the mean loss, from the spread between examples (the tokens of one are not independent):
    the linearized ratio estimator, Cochran 1977, section 2.11."""

    @property
    def loss(self) -> float:
        """Nats a predicted token; nan if nothing was predicted."""
        return self.loss_sum / self.masked_count if self.masked_count else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); inf where that is too large for a float."""
        return perplexity(self.loss)

    @property
    def perplexity_standard_error(self) -> float:
        """By the delta method."""
        return self.perplexity * self.loss_standard_error


def perplexity(loss: float) -> float:
    """exp(loss), with inf in place of an overflow."""
    return math.exp(loss) if not loss > 700.0 else math.inf


@torch.no_grad()
def evaluate(
    model: MaskedLanguageModel, loader: EvalLoader, compute: Compute, progress: Progress
) -> Evaluation:
    """Scores every test example once.

    Each canonical chunk meets the model alone, and the sums are reduced in float64 in the order
    of the examples, so that the result has the same bits whatever `eval.batch_size`.
    """
    model.eval()
    row_sums: list[torch.Tensor] = []  # float64 [B] each
    row_counts: list[torch.Tensor] = []
    for chunk in progress.during_evaluation(loader.chunks(), len(loader.blocks)):
        with compute.autocast():
            logits = model(
                chunk.input_ids.to(compute.device), positions=chunk.positions.to(compute.device)
            )
        losses = token_losses(logits, chunk.labels.to(compute.device)).double().cpu()  # [M]
        row_counts.append(chunk.row_offsets.diff())
        rows = torch.repeat_interleave(row_counts[-1])  # [M], each prediction's row
        row_sums.append(
            torch.zeros(len(row_counts[-1]), dtype=torch.float64).index_add(0, rows, losses)
        )
    sums, counts = torch.cat(row_sums), torch.cat(row_counts)
    total, count = float(sums.sum()), int(counts.sum())
    return Evaluation(total, count, _standard_error(sums, counts, total, count))


def _standard_error(sums: torch.Tensor, counts: torch.Tensor, total: float, count: int) -> float:
    examples = len(sums)
    if examples < 2 or count == 0:
        return math.nan
    residuals = sums - (total / count) * counts
    variance = float(residuals.square().sum()) * examples / (examples - 1)
    return math.sqrt(variance) / count
