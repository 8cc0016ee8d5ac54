"""Masked perplexity and accuracy: sums and counts until the last moment.

M predicted tokens   V vocabulary
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mlmlab.data.loader import EvalChunk, EvalLoader
from mlmlab.evaluation.documents import DocumentLosses, digest_of
from mlmlab.masking import MaskedBatch
from mlmlab.model import MaskedLanguageModel, token_losses
from mlmlab.runtime.devices import Compute
from mlmlab.runtime.distributed import ALONE, Ranks
from mlmlab.tracking.progress_bar import ProgressBar

PARTS = ("masked", "random", "kept")
"""What the model sees in a predicted token's place: the mask, another id, or the token itself."""
PIECE_TOKENS = 2048
"""What of a chunk is computed at a time on a CPU, for less memory; a GPU computes all of it."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over some predicted tokens, and what follows from them."""

    loss_sum: float
    """Negative log-likelihood in nats, summed in float64."""
    masked_count: int
    """Predicted tokens."""
    top1_count: int
    """Those that are the model's first choice."""
    top5_count: int
    """Those among its first five."""

    @property
    def loss(self) -> float:
        """Nats a predicted token; nan if nothing was predicted."""
        return self._mean(self.loss_sum)

    @property
    def perplexity(self) -> float:
        """exp(loss); inf where that is too large for a float."""
        return perplexity(self.loss)

    @property
    def top1_accuracy(self) -> float:
        """The share of first choices."""
        return self._mean(self.top1_count)

    @property
    def top5_accuracy(self) -> float:
        """The share among the first five."""
        return self._mean(self.top5_count)

    def _mean(self, total: float) -> float:
        return total / self.masked_count if self.masked_count else math.nan


@dataclass(frozen=True, kw_only=True)
class Evaluation(Score):
    """The complete evaluation."""

    loss_standard_error: float
    """Of the mean loss, from the spread between documents (the tokens of one are not independent,
    nor are several draws of masks over it): the linearized ratio estimator, Cochran 1977, section
    2.11. nan for a single document."""
    documents: int
    """Documents with a predicted token."""
    parts: dict[str, Score] = field(default_factory=dict)
    """The same by what stood in the token's place: masked, random, kept."""
    by_document: DocumentLosses = field(compare=False, repr=False)
    """The same by document."""

    @property
    def perplexity_standard_error(self) -> float:
        """By the delta method."""
        return self.perplexity * self.loss_standard_error


def perplexity(loss: float) -> float:
    """exp(loss), with inf in place of an overflow."""
    return math.exp(loss) if not loss > 700.0 else math.inf


@dataclass(frozen=True, eq=False)
class _ChunkScore:
    """The figures of a chunk's forward pass, on the host."""

    losses: torch.Tensor
    """float64 `[M]`."""
    hits: torch.Tensor
    """bool `[M, 5]`, whether the true id is the model's first, second, ... fifth choice."""
    row_counts: torch.Tensor
    """int64 `[B]`, predictions in each row."""
    document_ids: torch.Tensor
    """int64 `[M]`, the document of each prediction."""
    parts: torch.Tensor
    """int64 `[M]`, its index in `PARTS`."""
    digest: bytes
    """Of what was asked."""


class EvaluationInterrupted(Exception):  # noqa: N818 (no error: someone asked for it)
    """The evaluation was asked to stop before its end."""


@torch.no_grad()
def evaluate(
    model: MaskedLanguageModel,
    loader: EvalLoader,
    compute: Compute,
    bar: ProgressBar,
    *,
    ranks: Ranks = ALONE,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Scores every example once a draw.

    Each canonical chunk is computed in the same pieces, and the sums are reduced in float64 in the
    order of the examples, so that on like devices the result has the same bits however many
    processes share the chunks.

    Args:
        ranks: each process scores its share, and all of them have the complete result.
        is_interrupted: asked after every chunk.

    Raises:
        EvaluationInterrupted: in all processes, if it is true in one of them.
    """
    model.eval()
    sums = _Sums(loader)
    mine = bar.during_evaluation(loader.chunks(ranks), loader.example_count, ranks.size)
    with compute.autocast():  # around all of it: leaving it would drop the weights' copies
        for chunk in mine:  # as many in every process
            score = _score_chunk(model, chunk, loader, compute, ranks)
            gathered = ranks.gather((score if chunk.counts else None, is_interrupted()))
            if any(interrupted for _, interrupted in gathered):
                raise EvaluationInterrupted
            for one, _ in gathered:  # in the order of the examples
                if one is not None:
                    sums.add(one)
    return sums.evaluation()


def _score_chunk(
    model: MaskedLanguageModel,
    chunk: EvalChunk,
    loader: EvalLoader,
    compute: Compute,
    ranks: Ranks,
) -> _ChunkScore:
    asked = chunk.batch.masked
    most = asked.input_ids.numel() if compute.is_cuda else PIECE_TOKENS
    pieces = list(chunk.batch.pieces(most, compute.position_multiple))
    losses = torch.zeros(len(asked.labels), dtype=torch.float64)
    hits = torch.zeros(len(asked.labels), 5, dtype=torch.bool)
    # With fsdp, every process makes as many forward passes.
    for number in range(max(ranks.gather(len(pieces)))):
        which, piece = pieces[min(number, len(pieces) - 1)]
        batch = piece.to(compute.device)
        logits = model(**batch.model_inputs())[: len(which)]
        labels = batch.masked.labels[: len(which)]
        losses[which] = token_losses(logits, labels).cpu().double()
        hits[which] = (logits.topk(5).indices == labels[:, None]).cpu()
        del logits  # before there are those of the next piece
    return _ChunkScore(
        losses=losses,
        hits=hits,
        row_counts=asked.row_offsets.diff(),
        document_ids=chunk.document_ids,
        parts=parts_of(asked, loader.masker.vocabulary.mask_id),
        digest=digest_of(*(x.numpy() for x in (asked.input_ids, asked.positions, asked.labels))),
    )


class _Sums:
    """The chunks' scores so far: memory for each document, not for each token."""

    def __init__(self, loader: EvalLoader) -> None:
        documents = loader.blocks.shard.documents
        self.row_sums: list[torch.Tensor] = []  # float64 [B] each
        self.sums = torch.zeros(documents, dtype=torch.float64)  # of each document
        self.counts = torch.zeros(documents, dtype=torch.int64)
        self.tallies = torch.zeros(len(PARTS), 3, dtype=torch.int64)  # predicted, top 1, top 5
        self.part_sums = torch.zeros(len(PARTS), dtype=torch.float64)
        self.test = hashlib.sha256()

    def add(self, score: _ChunkScore) -> None:
        """The next chunk."""
        self.test.update(score.digest)
        losses, document_ids, parts = score.losses, score.document_ids, score.parts
        rows = torch.repeat_interleave(score.row_counts)  # [M], each prediction's row
        row_sums = torch.zeros(len(score.row_counts), dtype=torch.float64)
        self.row_sums.append(row_sums.index_add(0, rows, losses))
        self.sums.index_add_(0, document_ids, losses)
        self.counts.index_add_(0, document_ids, torch.ones_like(document_ids))
        self.part_sums.index_add_(0, parts, losses)
        tallies = [torch.ones_like(parts), score.hits[:, 0].long(), score.hits.sum(1)]
        self.tallies.index_add_(0, parts, torch.stack(tallies, dim=1))

    def evaluation(self) -> Evaluation:
        """Of all chunks together."""
        total = float(torch.cat(self.row_sums).sum()) if self.row_sums else 0.0
        whole = _score(total, self.tallies.sum(0))
        return Evaluation(
            loss_sum=whole.loss_sum,
            masked_count=whole.masked_count,
            top1_count=whole.top1_count,
            top5_count=whole.top5_count,
            loss_standard_error=_standard_error(self.sums, self.counts),
            documents=int(self.counts.count_nonzero()),
            parts={
                name: _score(float(self.part_sums[n]), self.tallies[n])
                for n, name in enumerate(PARTS)
            },
            by_document=DocumentLosses(
                self.sums.numpy(), self.counts.numpy(), self.test.hexdigest()
            ),
        )


def _score(loss_sum: float, tally: torch.Tensor) -> Score:
    predicted, top1, top5 = tally.tolist()
    return Score(loss_sum=loss_sum, masked_count=predicted, top1_count=top1, top5_count=top5)


def parts_of(masked: MaskedBatch[torch.Tensor], mask_id: int) -> torch.Tensor:
    """Which of `PARTS` each predicted token belongs to, int64 `[M]`."""
    shown = masked.input_ids.flatten()[masked.positions]
    is_kept = shown == masked.labels  # a random id that happens to be the token's own is one, too
    return torch.where(shown == mask_id, 0, torch.where(is_kept, 2, 1))


def _standard_error(sums: torch.Tensor, counts: torch.Tensor) -> float:
    """Of `sums.sum() / counts.sum()` over documents drawn at random."""
    scored = counts > 0
    sums, counts = sums[scored], counts[scored]
    documents, count = len(sums), int(counts.sum())
    if documents < 2:
        return math.nan
    residuals = sums - sums.sum() / count * counts
    variance = float(residuals.square().sum()) * documents / (documents - 1)
    return math.sqrt(variance) / count
