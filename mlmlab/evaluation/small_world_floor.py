"""What is known exactly about the small world: the floor of an evaluation, the answer to a text."""

from dataclasses import dataclass

import numpy as np

from mlmlab.data.loader import EvalLoader
from mlmlab.data.small_world.chain import TokenChain, small_world
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.evaluation.floor import lowest_losses, token_posteriors
from mlmlab.evaluation.masked_perplexity import PARTS, parts_of, perplexity
from mlmlab.masking import MaskingPolicy

SENTENCES = (
    "the gentle brown cow lives in the <mask> . it eats fresh grass every day .",
    "the lazy gray <mask> sleeps in the cave . it must growl every night .",
    "the clever baker works in the bakery . he bakes fine <mask> for anna .",
    "the day after monday is <mask> .",
)
"""Texts of the small world whose gaps have one answer, or nearly so."""


@dataclass(frozen=True)
class Floor:
    """The exact lowest perplexities on an evaluation's own blocks and masks."""

    perplexity: float
    parts: dict[str, float]
    """By what stood in the predicted token's place (`PARTS`), where any did."""


def exact_floor(tokenizer: Tokenizer, loader: EvalLoader) -> Floor | None:
    """The floor of an evaluation; None where no token is predicted.

    Args:
        tokenizer: of the small world's words.
        loader: of blocks of the small world's stream, with independent token masks.
    """
    chain, vocabulary = _chain(tokenizer), loader.masker.vocabulary
    sums, counts = np.zeros(len(PARTS)), np.zeros(len(PARTS))
    for chunk in loader.chunks():
        masked = chunk.batch.masked
        losses = lowest_losses(
            chain,
            masked.input_ids.numpy(),
            masked.positions.numpy(),
            masked.labels.numpy(),
            loader.masker.config,
            vocabulary,
        )
        parts = parts_of(masked, vocabulary.mask_id).numpy()
        sums += np.bincount(parts, losses, len(PARTS))
        counts += np.bincount(parts, minlength=len(PARTS))
    if not counts.any():
        return None
    by_part = zip(PARTS, sums, counts, strict=True)
    return Floor(
        perplexity=perplexity(float(sums.sum() / counts.sum())),
        parts={part: perplexity(float(total / n)) for part, total, n in by_part if n},
    )


def exact_answers(
    ids: list[int], masking: MaskingPolicy, tokenizer: Tokenizer
) -> list[tuple[str, float]]:
    """For each mask the word that the world most likely put there, and its exact probability.

    Args:
        ids: a text's, with masks.
    """
    places = np.flatnonzero(np.array(ids) == tokenizer.mask_id)
    try:
        posterior = token_posteriors(
            _chain(tokenizer), np.array([ids]), places, masking, tokenizer.vocabulary()
        )
    except ValueError:  # a sentence that the world never says has no true answer
        return []
    return [(tokenizer.decode([int(row.argmax())]), float(row.max())) for row in posterior]


def _chain(tokenizer: Tokenizer) -> TokenChain:
    world, ids = small_world(), tokenizer.backend.get_vocab()
    return world.token_chain(
        {word: ids[word] for word in world.words},
        tokenizer.vocabulary_size,
        ids[tokenizer.roles["cls_token"]],
        ids[tokenizer.roles["sep_token"]],
    )
