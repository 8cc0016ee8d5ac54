"""What is known exactly about the small world: the floor of an evaluation, the answer to a text."""

import numpy as np

from mlmlab.data.loader import EvalLoader
from mlmlab.data.small_world.chain import TokenChain, small_world
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.evaluation.floor import exact_floor, token_posteriors
from mlmlab.evaluation.masked_perplexity import perplexity
from mlmlab.masking import MaskingPolicy

SENTENCES = (
    "the gentle brown cow lives in the <mask> . it eats fresh grass every day .",
    "the lazy gray <mask> sleeps in the cave . it must growl every night .",
    "the clever baker works in the bakery . he bakes fine <mask> for anna .",
    "the day after monday is <mask> .",
)
"""Texts of the small world whose gaps have one answer, or nearly so."""


def floor_perplexity(tokenizer: Tokenizer, loader: EvalLoader) -> float | None:
    """The exact lowest perplexity on an evaluation's own blocks and masks; None where none of their
    tokens is predicted.

    Args:
        tokenizer: of the small world's words.
        loader: of blocks of the small world's stream, with independent token masks.
    """
    chain = _chain(tokenizer)
    loss_sum, count = 0.0, 0
    for chunk in loader.chunks():
        masked = chunk.batch.masked
        chunk_sum, chunk_count = exact_floor(
            chain,
            masked.input_ids.numpy(),
            masked.positions.numpy(),
            masked.labels.numpy(),
            loader.masker.config,
            loader.masker.vocabulary,
        )
        loss_sum, count = loss_sum + chunk_sum, count + chunk_count
    return perplexity(loss_sum / count) if count else None


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
